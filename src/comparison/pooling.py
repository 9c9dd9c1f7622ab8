"""Runs that differ in their seeds alone, pooled: mean and standard deviation of their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from src.comparison.runs import Number, Run
from src.config.words import typed

# of a number's own context: what must be equal where numbers are compared
CONDITIONS = (
    "split",
    "unit",
    "values",
    "scale",
    "n_images",
    "batch_size",
    "min_variance",
    "features",
    "features_key",
    "resize",
    "rounding",
    "n_real",
    "n_fake",
    "n_held_out",
    "n_unseen",
    "k",
    "kernel",
    "threshold",
    "quantile",
    "num_splits",
    "flow_steps",
    "metric",
    "settings",
    "data_range",
    "sigma",
    "net",
    "weights_sha256",
)
# settings of the data that concern only the training
OF_TRAINING = (
    "dataset.flip",
    "dataset.global_batch_size",
    "dataset.num_workers",
    "dataset.max_steps",
)
SEEDS = "sd over seeds"


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seeds alone, under one label, with their pooled numbers."""

    label: str
    runs: list[Run]
    numbers: dict[str, Number]

    @property
    def seeds(self) -> str:
        """``0, 1, 2 (n=3)``."""
        seeds = ", ".join(str(run.seed) for run in self.runs)
        return f"{seeds} (n={len(self.runs)})" if len(self.runs) > 1 else seeds

    def has(self, name: str) -> bool:
        """Whether there is a number of this name, and it has a value."""
        return name in self.numbers and self.numbers[name].value is not None

    def conditions(self, name: str) -> dict[str, str]:
        """What another setting's number must share to be compared with the number ``name``."""
        return _conditions(self.runs[0], name, self.numbers[name])


def by_setting(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of equal settings.

    A seed that occurs again begins another group, because it is no independent repeat.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            seeds = [other.seed for other in group]
            if group[0].settings == run.settings and run.seed not in seeds:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def pooled(runs: Sequence[Run]) -> dict[str, Number]:
    """All numbers that any of the runs has."""
    names = dict.fromkeys(name for run in runs for name in run.numbers)
    return {name: _mean(name, runs) for name in names}


def _mean(name: str, runs: Sequence[Run]) -> Number:
    """Mean and standard deviation over seeds; a single run keeps its own error."""
    having = [run for run in runs if name in run.numbers]
    found = [run for run in having if run.numbers[name].value is not None]
    if len(found) < 2:
        return (found or having)[0].numbers[name]
    unequal = _unequal_conditions(name, found)
    if unequal:
        return Number(None, reason=f"no mean: {', '.join(unequal)} differs between the seeds")
    values = [run.numbers[name].value for run in found]
    try:
        # equal values are kept as they are: a count stays an integer
        mean = statistics.fmean(values) if len(set(values)) > 1 else values[0]
        deviation = statistics.stdev(values)
    except OverflowError:
        return Number(None, reason="no mean: the values are too large")
    return Number(mean, deviation, SEEDS, "", found[0].numbers[name].context, len(found))


def _unequal_conditions(name: str, runs: Sequence[Run]) -> list[str]:
    """Conditions of the first run's number that another run does not share."""
    first, *others = [_conditions(run, name, run.numbers[name]) for run in runs]
    found = []
    for key, value in first.items():
        if any(other.get(key) != value for other in others):
            found.append(key)
    return found


def _conditions(run: Run, name: str, number: Number) -> dict[str, str]:
    """Conditions of the data and of the number itself.

    Where its context has no key of the features, their settings in the run take its place.
    """
    found = {
        key: value
        for key, value in run.settings.items()
        if key.startswith("dataset") and key not in OF_TRAINING
    }
    found |= {key: typed(number.context[key]) for key in CONDITIONS if key in number.context}
    of_features = f"_{run.settings.get('features')}_" in f"{name}_"
    if of_features and "features_key" not in found:
        drawn = "test_samples" if name.startswith("test/") else "num_samples"
        for key, value in run.settings.items():
            if key.startswith("features") or key == f"callback.generation.{drawn}":
                found[key] = value
    return found
