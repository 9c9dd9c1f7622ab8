"""What runs have in common, where they differ and which is best: seeds pooled, the incomparable never ranked."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.comparison.choices import differing, short_names
from src.comparison.runs import COSTS, STAGES, Number, Run, read_run
from src.config.words import typed
from src.errors import ConfigError, DataError

LOWER = ("fid", "kid", "bits_per_dim", "nats", "lpips")
HIGHER = (
    "precision",
    "recall",
    "coverage",
    "inception_score",
    "mig",
    "sap",
    "dci",
    "psnr",
    "ssim",
    "accuracy",
)
HIGHER += ("beta_vae_score", "factor_vae_score", "log_likelihood")
OF_JUDGE = ("fid_floor", "accuracy_of")  # say how good the yardstick is, not the model
CONDITIONS = (  # of a number's own context: what must be equal where numbers are compared
    *(
        "split",
        "unit",
        "values",
        "scale",
        "n_images",
        "batch_size",
        "min_variance",
        "features",
        "features_key",
    ),
    *(
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
    ),
    *("num_splits", "flow_steps"),
    *("metric", "data_range", "sigma", "net", "weights_sha256"),
)
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

    def conditions(self, name: str) -> dict[str, str]:
        """What a number of another setting must share to be compared with the number ``name`` of this one."""
        return _conditions(self.runs[0], name, self.numbers[name])


@dataclass(frozen=True)
class Comparison:
    """choices: where the settings differ, name -> one value per setting ("": it has none). metrics, costs: shown."""

    settings: list[Setting]
    choices: dict[str, list[str]]
    metrics: list[str]
    costs: list[str]

    @property
    def runs(self) -> list[Run]:
        """All runs, setting by setting."""
        return [run for setting in self.settings for run in setting.runs]

    @property
    def measured(self) -> list[str]:
        """All metrics that any run has, also those not shown."""
        return _measured(self.settings)

    def best(self, name: str) -> set[int]:
        """Indices of the settings with the best value; none where they have no direction or do not compare."""
        values = {
            i: setting.numbers[name].value
            for i, setting in enumerate(self.settings)
            if name in setting.numbers
        }
        values = {i: value for i, value in values.items() if value is not None}
        sign = direction(name)
        if not sign or len(set(values.values())) < 2 or self.obstacles(name):
            return set()
        top = max(sign * value for value in values.values())
        return {i for i, value in values.items() if sign * value == top}

    def obstacles(self, name: str) -> dict[str, dict[str, list[str]]]:
        """Conditions of the number ``name`` that the settings do not share: condition -> value -> labels."""
        found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        having = [setting for setting in self.settings if name in setting.numbers]
        having = [setting for setting in having if setting.numbers[name].value is not None]
        conditions = {setting.label: setting.conditions(name) for setting in having}
        for key in dict.fromkeys(key for held in conditions.values() for key in held):
            for label, held in conditions.items():
                found[key][held.get(key, "unknown")].append(label)
        return {key: dict(labels) for key, labels in found.items() if len(labels) > 1}


def compare(
    paths: Sequence[Path], patterns: Sequence[str] = (), sort: str | None = None
) -> Comparison:
    """Read the runs, pool their seeds and choose what to show.

    patterns: of the metrics to show (fnmatch, ``test/`` may be left out); none: all of the test split. sort: name of
    the metric or cost by which the settings are ordered, best first. Raises ConfigError where one of them fits nothing,
    DataError where a file is damaged or no run has a number.
    """
    runs = [read_run(path) for path in paths]
    groups = _pooled(runs)
    choices = differing([group[0].settings for group in groups])
    labels = short_names(choices, [group[0] for group in groups])
    settings = [
        Setting(name, group, _means(group)) for name, group in zip(labels, groups, strict=True)
    ]
    names = _measured(settings)
    if not names:
        others = ", nor has any other of these runs" if len(paths) > 1 else ""
        raise DataError(
            f"{paths[0]}: has no numbers yet (neither metrics.json nor evaluation.json){others}"
        )
    metrics = _chosen(names, patterns)
    costs = [name for name in COSTS if any(name in setting.numbers for setting in settings)]
    if all("train_seconds" in setting.numbers for setting in settings):
        costs = [name for name in costs if name != "seconds"]  # which counts the start as well
    order = (
        range(len(settings))
        if sort is None
        else _order(settings, _matching([*names, *costs], glob.escape(sort), "--sort")[0])
    )
    choices = {name: [values[i] for i in order] for name, values in choices.items()}
    return Comparison([settings[i] for i in order], choices, metrics, costs)


def direction(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither."""
    rest = f"{name.partition('/')[2]}_"
    if rest.startswith(tuple(f"{prefix}_" for prefix in OF_JUDGE)):
        return 0
    lower, higher = (
        rest.startswith(tuple(f"{prefix}_" for prefix in kind)) for kind in (LOWER, HIGHER)
    )
    return higher - lower


def _pooled(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by setting; a seed that occurs again begins another group, because it is no independent repeat."""
    groups: list[list[Run]] = []
    for run in runs:
        fitting = (
            g
            for g in groups
            if g[0].settings == run.settings and run.seed not in [r.seed for r in g]
        )
        group = next(fitting, None)
        groups.append([run]) if group is None else group.append(run)
    return groups


def _means(group: Sequence[Run]) -> dict[str, Number]:
    names = dict.fromkeys(name for run in group for name in run.numbers)
    return {name: _mean(name, [run for run in group if name in run.numbers]) for name in names}


def _mean(name: str, runs: Sequence[Run]) -> Number:
    """Mean and standard deviation over seeds; a single run keeps its own error."""
    found = [run for run in runs if run.numbers[name].value is not None]
    if len(found) < 2:
        return (found or runs)[0].numbers[name]
    numbers = [run.numbers[name] for run in found]
    conditions = [
        _conditions(run, name, number) for run, number in zip(found, numbers, strict=True)
    ]
    unequal = [
        key
        for key in conditions[0]
        if any(other.get(key) != conditions[0][key] for other in conditions)
    ]
    if unequal:
        return Number(None, reason=f"no mean: {', '.join(unequal)} differs between the seeds")
    values = [number.value for number in numbers]
    mean = statistics.fmean(values) if len(set(values)) > 1 else values[0]  # a count stays one
    return Number(mean, statistics.stdev(values), SEEDS, "", numbers[0].context, len(found))


def _conditions(run: Run, name: str, number: Number) -> dict[str, str]:
    """Of the data and of the number itself; of features that no key tells, their settings in the run."""
    of_data = {
        key: value
        for key, value in run.settings.items()
        if key.startswith("dataset") and key not in OF_TRAINING
    }
    own = {key: typed(number.context[key]) for key in CONDITIONS if key in number.context}
    if "features_key" in own or f"_{run.settings.get('features')}_" not in f"{name}_":
        return of_data | own
    drawn = f"callback.generation.{'test' if name.startswith('test/') else 'num'}_samples"
    return (
        of_data
        | own
        | {
            key: run.settings[key]
            for key in run.settings
            if key.startswith("features") or key == drawn
        }
    )


def _measured(settings: Sequence[Setting]) -> list[str]:
    names = {name for setting in settings for name in setting.numbers if name.startswith(STAGES)}
    return sorted(names, key=lambda name: (STAGES.index(f"{name.partition('/')[0]}/"), name))


def _chosen(names: list[str], patterns: Sequence[str]) -> list[str]:
    if patterns:
        found = {name for pattern in patterns for name in _matching(names, pattern, "--metric")}
        return [name for name in names if name in found]
    return [name for name in names if name.startswith("test/")] or names


def _matching(names: list[str], pattern: str, option: str) -> list[str]:
    """Names that fit, with or without ``test/`` in front; raises ConfigError with the nearest where none does."""
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    found = found or [name for name in names if fnmatch.fnmatchcase(name, f"test/{pattern}")]
    if not found:
        near = (
            difflib.get_close_matches(
                f"test/{pattern.removeprefix('test/')}", names, n=3, cutoff=0.5
            )
            or names
        )
        raise ConfigError(
            f"{option}={pattern}: no run has such a metric; there are, for example, {', '.join(near[:3])}"
        )
    return found


def _order(settings: Sequence[Setting], name: str) -> list[int]:
    """Best first; where no direction is known, the smallest; settings without the number last."""

    def key(i: int) -> tuple[bool, float]:
        number: Any = settings[i].numbers.get(name)
        missing = number is None or number.value is None
        return missing, 0.0 if missing else -(direction(name) or -1) * number.value

    return sorted(range(len(settings)), key=key)
