"""Where the settings of runs differ, and the shortest names that distinguish them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from src.comparison.runs import Run

PLAIN = ("ckpt_path", "init_from", "evaluation")  # settings without a dot that are no groups


def differing(settings: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Settings in which runs differ: name -> a value for each run, "" where it has none."""
    found = Choices(settings)
    for name in dict.fromkeys(name for values in settings for name in values):
        unequal = found.differs(name)
        lacking = found.is_lacking(name) and not found.implied_by_another_choice(name)
        if (unequal or lacking) and not found.is_copy(name):
            found.add(name)
    names = sorted(found.choices, key=lambda name: name.startswith("evaluation"))
    return {name: found.choices[name] for name in names}


class Choices:
    """Settings of runs side by side, and the choices found among them so far."""

    def __init__(self, settings: Sequence[dict[str, str]]) -> None:
        self.settings = settings
        self.choices: dict[str, list[str]] = {}

    def add(self, name: str) -> None:
        """Count a setting among the choices."""
        self.choices[name] = self.values(name)

    def values(self, name: str) -> list[str]:
        """The value of each run, "" where it has none."""
        return [values.get(name, "") for values in self.settings]

    def differs(self, name: str) -> bool:
        """Whether the runs that have this setting have it with different values."""
        return len({values[name] for values in self.settings if name in values}) > 1

    def is_lacking(self, name: str) -> bool:
        """Whether some runs have no value."""
        return "" in self.values(name)

    def implied_by_another_choice(self, name: str) -> bool:
        """With another model, or another option above it, come other settings."""
        above = tuple(f"{choice}." for choice in self.choices)
        return "model" in self.choices or name.startswith(above)

    def is_copy(self, name: str) -> bool:
        """Whether an earlier choice has the same values under the same last name.

        So has ``network.decoder.latent_dim``. How a run was evaluated is a copy of any choice
        with the same values.
        """
        values = self.values(name)
        alike = [choice for choice, known in self.choices.items() if known == values]
        if name.startswith("evaluation."):
            return bool(alike)
        return _last(name) in map(_last, alike)


def short_names(choices: dict[str, list[str]], runs: Sequence[Run]) -> list[str]:
    """A name per run, as short as can be.

    The model, then the choices that distinguish it from runs with the same name so far: options of
    groups before single values, then how a run was evaluated, then its directory.
    """
    names = [run.settings.get("model", "model") for run in runs]
    for choice in sorted(choices, key=_rank):
        names = _extended(names, choice, choices[choice])
    times = Counter(names)
    pairs = zip(names, _ends(runs), strict=True)
    return [name if times[name] == 1 else f"{name} {end}" for name, end in pairs]


def _extended(names: list[str], choice: str, values: list[str]) -> list[str]:
    """The names, with the value of a choice where runs of one name differ in it."""
    held = defaultdict(set)
    for name, value in zip(names, values, strict=True):
        held[name].add(value)
    extended = []
    for name, value in zip(names, values, strict=True):
        more = _in_words(choice, value) if len(held[name]) > 1 else ""
        extended.append(f"{name} {more}".strip())
    return extended


def _ends(runs: Sequence[Run]) -> list[str]:
    """The name of each run's directory, or the path where several have the same name."""
    times = Counter(run.path.name for run in runs)
    return [run.path.name if times[run.path.name] == 1 else str(run.path) for run in runs]


def _in_words(choice: str, value: str) -> str:
    """``cosine`` of a group, ``lr=0.01`` or ``beta=4.0`` of a value, nothing where it has none."""
    if _is_group(choice) or not value:
        return value
    return f"{_last(choice.removesuffix('.value'))}={value}"


def _rank(choice: str) -> tuple[bool, bool]:
    return choice.startswith("evaluation"), not _is_group(choice)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_group(name: str) -> bool:
    return "." not in name and name not in PLAIN
