"""The lines below a comparison: what is not comparable, and what to know before trusting it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from src.comparison.comparison import Comparison, direction
from src.comparison.pooling import SEEDS
from src.comparison.runs import Run

# choices with which a loss changes its meaning
LOSS = ("model", "likelihood", "beta", "prediction", "weighting")


def notes(comparison: Comparison) -> list[str]:
    """Lines below the table, warnings first."""
    return [
        *_not_comparable(comparison),
        *_not_evaluated(comparison),
        *_elsewhere(comparison),
        *_losses(comparison),
        *_commits(comparison),
        *_errors(comparison),
    ]


def _not_comparable(comparison: Comparison) -> Iterator[str]:
    """A line per condition that the settings do not share, with the metrics it concerns."""
    sides: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    concerned: dict[str, list[str]] = defaultdict(list)
    for name in comparison.metrics:
        for key, labels in comparison.obstacles(name).items():
            if direction(name) or key.startswith(("dataset", "features")):
                concerned[key].append(name)
                for value, owners in labels.items():
                    sides[key][value] += owners
    for key, names in concerned.items():
        by_value = {value: listed(_distinct(owners)) for value, owners in sides[key].items()}
        text = "; ".join(f"{value}: {owners}" for value, owners in by_value.items())
        metrics = "all metrics" if names == comparison.metrics else listed(names)
        yield f"not comparable: {key} differs ({text}): {metrics}"


def _not_evaluated(comparison: Comparison) -> Iterator[str]:
    """Runs whose numbers are those of the end of training, or that have none."""
    without = [run for run in comparison.runs if not run.evaluated and run.numbers]
    if without:
        place = without[0].path if len(without) == 1 else "RUN"
        command = f"python -m src.evaluate ckpt_path={place}"
        yield f"not evaluated, as measured at the end of training: {_paths(without)} ({command})"
    unfinished = [run for run in comparison.runs if not run.numbers]
    if unfinished:
        yield f"without numbers (neither metrics.json nor evaluation.json): {_paths(unfinished)}"


def _elsewhere(comparison: Comparison) -> Iterator[str]:
    """Evaluations of another state than the last one."""
    for run in comparison.runs:
        step = run.context.get("step", run.last_step)
        if run.last_step not in (None, step):
            yield f"evaluated at step {step} of {run.last_step}: {run.path}"


def _losses(comparison: Comparison) -> Iterator[str]:
    has_loss = any(name.endswith("/loss") for name in comparison.metrics)
    if has_loss and not comparison.choices.keys().isdisjoint(LOSS):
        yield "loss: what each setting minimises, not a yardstick between them"


def _commits(comparison: Comparison) -> Iterator[str]:
    commits = Counter(run.commit for run in comparison.runs)
    if len(commits) > 1:
        yield f"not of one commit: {', '.join(f'{name} ({num})' for name, num in commits.items())}"


def ranking(comparison: Comparison, best: str) -> Iterator[str]:
    """What the best values are. best: how they are marked."""
    if any(comparison.best(name) for name in comparison.metrics):
        where = "only where a direction is known and the numbers compare"
        yield f"{best}: best value, whatever the error bars; {where}"


def _errors(comparison: Comparison) -> Iterator[str]:
    """What ± stands for."""
    kinds = set()
    for setting in comparison.settings:
        shown = [setting.numbers[name] for name in comparison.metrics if name in setting.numbers]
        kinds |= {number.error_kind for number in shown if number.error is not None}
    own = sorted(kinds - {SEEDS})
    pooled = any(len(setting.runs) > 1 for setting in comparison.settings)
    if pooled and own:
        yield f"±: {SEEDS} where n > 1, else of the one run: {', '.join(own)}"
    elif pooled:
        yield f"±: {SEEDS} where n > 1"
    elif own:
        yield f"±: {', '.join(own)}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c, d and 5 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _paths(runs: Sequence[Run]) -> str:
    return listed([str(run.path) for run in runs])


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
