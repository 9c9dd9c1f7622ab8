"""What runs have in common, where they differ and which is best; the incomparable never ranked."""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from src.comparison.choices import differing, short_names
from src.comparison.pooling import Setting, by_setting, pooled
from src.comparison.runs import COSTS, STAGES, Run, read_run
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
OF_REFERENCE = ("fid_floor", "accuracy_of")  # say how good the reference is, not the model


@dataclass(frozen=True)
class Comparison:
    """Settings side by side.

    Arguments:
        settings: in the order in which they are shown.
        choices: where the settings differ: name -> a value for each of them, "" where it has none.
        metrics: names of those shown.
        costs: likewise.
    """

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
        """Indices of the settings with the best value.

        None where the numbers have no direction or do not compare.
        """
        sign = direction(name)
        values = {
            i: setting.numbers[name].value
            for i, setting in enumerate(self.settings)
            if setting.has(name)
        }
        if not sign or len(set(values.values())) < 2 or self.obstacles(name):
            return set()
        top = max(values.values(), key=lambda value: sign * value)
        return {i for i, value in values.items() if value == top}

    def obstacles(self, name: str) -> dict[str, dict[str, list[str]]]:
        """Conditions of a number that the settings do not share: condition -> value -> labels."""
        having = [setting for setting in self.settings if setting.has(name)]
        conditions = {setting.label: setting.conditions(name) for setting in having}
        found = {}
        for key in dict.fromkeys(chain.from_iterable(conditions.values())):
            labels: dict[str, list[str]] = defaultdict(list)
            for label, held in conditions.items():
                labels[held.get(key, "unknown")].append(label)
            if len(labels) > 1:
                found[key] = dict(labels)
        return found


def compare(
    paths: Sequence[Path], patterns: Sequence[str] = (), sort: str | None = None
) -> Comparison:
    """Read the runs, pool their seeds and choose what to show.

    Raises ConfigError where a name or pattern fits nothing, DataError where a file is damaged or no
    run has a number.

    Arguments:
        paths: of the run directories.
        patterns: of the metrics to show (fnmatch, ``test/`` may be left out); none: all of test.
        sort: the metric or cost by which the settings are ordered, best first.
    """
    groups = by_setting([read_run(path) for path in paths])
    choices = differing([group[0].settings for group in groups])
    labels = short_names(choices, [group[0] for group in groups])
    settings = [
        Setting(label, group, pooled(group)) for label, group in zip(labels, groups, strict=True)
    ]
    names = _measured(settings)
    if not names:
        others = ", nor has any other of these runs" if len(paths) > 1 else ""
        files = "neither metrics.json nor evaluation.json"
        raise DataError(f"{paths[0]}: has no numbers yet ({files}){others}")
    metrics = _chosen(names, patterns)
    costs = _costs(settings)
    if sort is not None:
        fitting = _matching([*names, *costs], glob.escape(sort), "--sort")
        order = _order(settings, fitting[0])
        settings = [settings[i] for i in order]
        for name, values in choices.items():
            choices[name] = [values[i] for i in order]
    return Comparison(settings, choices, metrics, costs)


def direction(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither."""
    rest = name.partition("/")[2]
    if _begins(rest, OF_REFERENCE):
        return 0
    if _begins(rest, HIGHER):
        return 1
    return -1 if _begins(rest, LOWER) else 0


def _begins(name: str, starts: Sequence[str]) -> bool:
    """Whether the first parts of a name, divided by ``_``, are one of ``starts``."""
    return f"{name}_".startswith(tuple(f"{start}_" for start in starts))


def _measured(settings: Sequence[Setting]) -> list[str]:
    names = {name for setting in settings for name in setting.numbers if name.startswith(STAGES)}
    return sorted(names, key=lambda name: (STAGES.index(f"{name.partition('/')[0]}/"), name))


def _costs(settings: Sequence[Setting]) -> list[str]:
    """Costs that any setting has; the total time only where training was not timed alone."""
    held = {name for setting in settings for name in setting.numbers}
    if all("train_seconds" in setting.numbers for setting in settings):
        held.discard("seconds")
    return [name for name in COSTS if name in held]


def _chosen(names: list[str], patterns: Sequence[str]) -> list[str]:
    if patterns:
        found = {name for pattern in patterns for name in _matching(names, pattern, "--metric")}
        return [name for name in names if name in found]
    return [name for name in names if name.startswith("test/")] or names


def _matching(names: list[str], pattern: str, option: str) -> list[str]:
    """Names that fit, with or without ``test/`` in front.

    Raises ConfigError with the nearest names where none does.
    """
    for form in (pattern, f"test/{pattern}"):
        found = [name for name in names if fnmatch.fnmatchcase(name, form)]
        if found:
            return found
    meant = f"test/{pattern.removeprefix('test/')}"
    near = difflib.get_close_matches(meant, names, n=3, cutoff=0.5) or names[:3]
    examples = f"there are, for example, {', '.join(near)}"
    raise ConfigError(f"{option}={pattern}: no run has such a metric; {examples}")


def _order(settings: Sequence[Setting], name: str) -> list[int]:
    """Indices, best first; where no direction is known, the smallest; those without it last."""
    sign = direction(name) or -1
    having = [i for i, setting in enumerate(settings) if setting.has(name)]
    missing = [i for i, setting in enumerate(settings) if not setting.has(name)]
    return [*sorted(having, key=lambda i: -sign * settings[i].numbers[name].value), *missing]
