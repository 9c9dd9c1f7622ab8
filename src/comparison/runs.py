"""One run, read from its files as plain values; nothing is built."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.comparison.files import configuration, evaluation, final_numbers
from src.comparison.run_settings import flat_settings, run_settings
from src.errors import DataError, first_line
from src.rundir.history import TIMES
from src.rundir.numbers import Numbers
from src.rundir.store import run_of

EVALUATION = "evaluation.json"
MOST_SETTINGS = 5000  # of a run; each is compared with all others
STAGES = ("test/", "val/", "train/")
COSTS = ("parameters", "step", *TIMES, "sampling_seconds_per_image")
# costs that are taken from evaluation.json where there is one
OF_EVALUATION = ("parameters", "step", "sampling_seconds_per_image")
# what an evaluation may choose anew
PROTOCOL = ("weights", "sampler", "sampler_steps", "features_key", "precision")


@dataclass(frozen=True)
class Number:
    """A measured number, or the mean of several.

    Arguments:
        value: None where there is none.
        error: of the value, where it is known.
        error_kind: how the error was found.
        reason: why there is no value.
        context: what the number depends on.
        count: of runs that the value is the mean of.
    """

    value: float | None
    error: float | None = None
    error_kind: str = ""
    reason: str = ""
    context: dict[str, Any] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Arguments:
        path: of the directory that was named.
        settings: name -> value, as typed on the command line.
        seed: of the training.
        numbers: metrics and costs.
        context: of the evaluation.
        provenance: of the training: commit, command line.
        last_step: of the training.
    """

    path: Path
    settings: dict[str, str]
    seed: int | None
    numbers: dict[str, Number]
    context: dict[str, Any]
    provenance: dict[str, Any]
    last_step: int | None

    @property
    def evaluated(self) -> bool:
        """Whether the numbers are those of ``evaluation.json``."""
        return self.settings["evaluation"] == "yes"

    @property
    def commit(self) -> str:
        """Short commit of the code that trained it, with ``+`` where files differed."""
        git = self.provenance.get("git") or "unknown"
        return f"{git[:7]}+" if git.endswith("+") else git[:7]


def read_run(path: Path) -> Run:
    """Settings and numbers of a run.

    The numbers are those of ``evaluation.json`` where there is one, else of ``metrics.json``; it
    may lack both. An evaluation that lies elsewhere names its run. Raises DataError where a file
    is damaged or the run is gone, StorageError where it cannot be read.
    """
    evaluated = evaluation(path / EVALUATION)
    context = evaluated.get("context", {})
    home = path
    if not os.path.lexists(path / "config.yaml"):
        home = run_of(Path(context.get("checkpoint") or path))
    config = configuration(home / "config.yaml")
    try:
        settings = run_settings(config)
    except ValueError as error:
        raise DataError(f"{home / 'config.yaml'}: damaged (it {first_line(error)})") from error
    if len(settings) > MOST_SETTINGS:
        raise DataError(f"{home / 'config.yaml'}: has more than {MOST_SETTINGS} settings")
    final = final_numbers(home / "metrics.json")
    own = evaluated.get("numbers", final)
    return Run(
        path=path,
        settings=settings | _protocol(evaluated),
        seed=config.get("seed"),
        numbers=_measured(own, evaluated.get("details", {})) | _costs(final, context),
        context=context,
        provenance=config.get("provenance") or {},
        last_step=final.get("step"),
    )


def _protocol(evaluated: dict[str, Any]) -> dict[str, str]:
    """How a run was evaluated, as settings."""
    context = evaluated.get("context", {})
    chosen = {name: context[name] for name in PROTOCOL if context.get(name) is not None}
    return {"evaluation": "yes" if evaluated else "no"} | flat_settings(chosen, "evaluation")


def _costs(final: Numbers, context: dict[str, Any]) -> dict[str, Number]:
    """Parameters and times, of the evaluation where it has them, else of the end of training."""
    known = final | {name: context[name] for name in OF_EVALUATION if name in context}
    return {name: _number(known[name], {}) for name in COSTS if known.get(name) is not None}


def _measured(numbers: Numbers, details: dict[str, dict[str, Any]]) -> dict[str, Number]:
    return {
        name: _number(value, details.get(name, {}))
        for name, value in numbers.items()
        if name.startswith(STAGES)
    }


def _number(value: float | None, details: dict[str, Any]) -> Number:
    """The number; one that is not finite is none, and so is such an error."""
    error = details.get("error")
    if error is not None and not math.isfinite(error):
        details = details | {"error": None}
    if value is not None and not math.isfinite(value):
        details = details | {"error": None, "reason": f"not finite ({value})"}
        value = None
    return Number(value, **details)
