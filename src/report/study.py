"""A study at a glance: the course of each objective, what it depends on, and the front of two."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.report.escape import label
from src.report.figure import blank, log_scale_helps, save_figure

ENOUGH = 4  # complete trials; importances of fewer are noise


def draw_study(study: Study, names: list[str], target: Path) -> None:
    """Write one PNG of a study with complete trials. names: of the objectives."""
    kinds = ["history", "importance"] if len(complete(study)) >= ENOUGH else ["history"]
    rows = []
    for index in range(len(names)):
        rows.append([f"{kind} {index}" for kind in kinds])
        if len(names) > 1:
            rows[-1].append("front 0")  # one panel as high as all
    names = [label(name) for name in names]
    figure = blank(5.2 * len(rows[0]), 3.8 * len(rows))
    for panel, axes in figure.subplot_mosaic(rows).items():
        kind, index = panel.split()
        PANELS[kind](axes, study, names, int(index))
        axes.grid(alpha=0.3)
    save_figure(figure, target)


def complete(study: Study) -> list[FrozenTrial]:
    """Trials with a result."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _history(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """Values over trial numbers, and the best so far; pruned and failed trials at the foot."""
    numbers = [trial.number for trial in complete(study)]
    values = [trial.values[index] for trial in complete(study)]
    axes.plot(numbers, values, "o", markersize=4, label="complete")
    better = min if study.directions[index] == StudyDirection.MINIMIZE else max
    best = list(accumulate(values, better))
    axes.step(numbers, best, where="post", label="best so far")
    _mark(axes, study, TrialState.PRUNED, "|", "pruned")
    _mark(axes, study, TrialState.FAIL, "x", "failed")
    if log_scale_helps(values):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=names[index], title="history")
    axes.legend()


def _mark(axes: Axes, study: Study, state: TrialState, marker: str, label: str) -> None:
    """Mark the trials in this state at the foot of the panel."""
    numbers = [trial.number for trial in study.get_trials(deepcopy=False, states=[state])]
    if numbers:
        heights = [0.02] * len(numbers)
        at = axes.get_xaxis_transform()
        axes.plot(numbers, heights, marker, color="grey", transform=at, label=label)


def _importance(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """Fraction of the variance of an objective that each setting explains (fANOVA)."""
    if len({trial.values[index] for trial in complete(study)}) < 2:
        text = f"{names[index]} is the same everywhere"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
        return
    evaluator = FanovaImportanceEvaluator(seed=0)
    shares = get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[index]
    )
    shares = dict(sorted(shares.items(), key=lambda item: item[1]))
    axes.barh([label(name) for name in shares], list(shares.values()))
    axes.set(xlabel=f"share of the variance of {names[index]}", title="importance", xlim=(0, 1))


def _front(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """The first two objectives against each other."""
    values = np.array([trial.values[:2] for trial in complete(study)])
    best = sorted(trial.values[:2] for trial in study.best_trials)
    axes.plot(*values.T, "o", markersize=4, color="grey", label="complete")
    axes.plot(*np.array(best).T, "o-", markersize=5, color="C3", label="Pareto front")
    axes.set(xlabel=names[index], ylabel=names[index + 1], title="Pareto front")
    axes.legend()


PANELS = {"history": _history, "importance": _importance, "front": _front}
