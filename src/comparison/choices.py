"""Where the settings of runs differ, and the shortest names that tell them apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from src.comparison.runs import Run

PLAIN = ("ckpt_path", "init_from", "evaluation")  # settings without a dot that are no groups


def differing(settings: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Settings in which runs differ, one value each; "" where a run has no such setting.

    What only some have is shown where nothing above it says why: with another model or network come other settings.
    A setting that has the name and the values of an earlier one is its copy (``network.decoder.latent_dim``).
    """
    found: dict[str, list[str]] = {}
    copies = set()
    for name in dict.fromkeys(name for values in settings for name in values):
        values = [values.get(name, "") for values in settings]
        held = {values[name] for values in settings if name in values}
        explained = "model" in found or any(name.startswith(f"{above}.") for above in found)
        key = (name.rpartition(".")[2], tuple(values))
        copied = key in copies or (name.startswith("evaluation.") and values in found.values())
        if (len(held) > 1 or ("" in values and not explained)) and not copied:
            found[name] = values
            copies.add(key)
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("evaluation")))


def short_names(choices: dict[str, list[str]], runs: Sequence[Run]) -> list[str]:
    """A name per run, as short as can be: the model, then what tells it from those that would be called the same.

    Options of groups come before single values, how a run was evaluated and its directory last.
    """
    names = [run.settings.get("model", "model") for run in runs]
    for name in sorted(
        choices, key=lambda name: (name.startswith("evaluation"), not _is_group(name))
    ):
        alike = defaultdict(set)
        for called, value in zip(names, choices[name], strict=True):
            alike[called].add(value)
        names = [
            f"{called} {_choice(name, value)}".strip() if len(alike[called]) > 1 else called
            for called, value in zip(names, choices[name], strict=True)
        ]
    times, directories = Counter(names), Counter(run.path.name for run in runs)
    ends = [run.path.name if directories[run.path.name] == 1 else str(run.path) for run in runs]
    return [
        called if times[called] == 1 else f"{called} {end}"
        for called, end in zip(names, ends, strict=True)
    ]


def _choice(name: str, value: str) -> str:
    """``cosine`` of a group, ``lr=0.01`` or ``beta=4.0`` of a value, nothing where there is no such setting."""
    called = name.removesuffix(".value").rpartition(".")[2]
    return value if _is_group(name) or not value else f"{called}={value}"


def _is_group(name: str) -> bool:
    return "." not in name and name not in PLAIN
