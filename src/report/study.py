"""A study at a glance: the course of each objective, what it depends on, and the front of two."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.files import atomic_path

ENOUGH = 4  # complete trials; importances of fewer are noise


def draw_study(study: Study, names: list[str], target: Path) -> None:
    """Write one PNG of a study with complete trials. names: of the objectives."""
    importances = len(complete(study)) >= ENOUGH
    rows = [
        [(_history, index), *([(_importance, index)] if importances else [])]
        for index in range(len(names))
    ]
    if len(names) > 1:
        rows = [[*row, (_front, 0)] for row in rows]  # one panel as high as all
    figure = Figure(figsize=(5.2 * len(rows[0]), 3.8 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = {f"{draw.__name__}{index}": (draw, index) for row in rows for draw, index in row}
    mosaic = [[f"{draw.__name__}{index}" for draw, index in row] for row in rows]
    for panel, axes in figure.subplot_mosaic(mosaic).items():
        draw, index = panels[panel]
        draw(axes, study, names, index)
        axes.grid(alpha=0.3)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png")


def complete(study: Study) -> list[FrozenTrial]:
    """Trials with a result."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _history(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """Values over trial numbers, and the best so far; pruned and failed trials at the foot."""
    done = complete(study)
    numbers, values = [t.number for t in done], [t.values[index] for t in done]
    axes.plot(numbers, values, "o", markersize=4, label="complete")
    best = list(
        accumulate(values, min if study.directions[index] == StudyDirection.MINIMIZE else max)
    )
    axes.step(numbers, best, where="post", label="best so far")
    for state, mark in ((TrialState.PRUNED, "|"), (TrialState.FAIL, "x")):
        others = study.get_trials(deepcopy=False, states=[state])
        if others:
            at = axes.get_xaxis_transform()
            label = {"PRUNED": "pruned", "FAIL": "failed"}[state.name]
            axes.plot(
                [t.number for t in others],
                [0.02] * len(others),
                mark,
                color="grey",
                transform=at,
                label=label,
            )
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=names[index], title="history")
    axes.legend()


def _importance(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """Share of the variance of an objective that each setting explains (fANOVA), where it varies."""
    if len({trial.values[index] for trial in complete(study)}) < 2:
        axes.text(
            0.5,
            0.5,
            f"{names[index]} is the same everywhere",
            ha="center",
            transform=axes.transAxes,
        )
        return
    shares = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        target=lambda trial: trial.values[index],
    )
    shares = dict(sorted(shares.items(), key=lambda item: item[1]))
    axes.barh(list(shares), list(shares.values()))
    axes.set(xlabel=f"share of the variance of {names[index]}", title="importance", xlim=(0, 1))


def _front(axes: Axes, study: Study, names: list[str], index: int) -> None:
    """The first two objectives against each other."""
    values = np.array([trial.values[:2] for trial in complete(study)])
    best = sorted(trial.values[:2] for trial in study.best_trials)
    axes.plot(*values.T, "o", markersize=4, color="grey", label="complete")
    axes.plot(*np.array(best).T, "o-", markersize=5, color="C3", label="Pareto front")
    axes.set(xlabel=names[index], ylabel=names[index + 1], title="Pareto front")
    axes.legend()
