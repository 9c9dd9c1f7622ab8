"""One run, read from its files as plain values; nothing is built."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.comparison.run_settings import flat_settings, run_settings
from src.config.untrusted import plain_yaml
from src.errors import DataError, StorageError, first_line
from src.rundir.history import TIMES
from src.rundir.store import run_of

EVALUATION = "evaluation.json"
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
    evaluation = _read(path / EVALUATION)
    context = evaluation.get("context", {})
    home = path
    if not (path / "config.yaml").exists():
        home = run_of(Path(context.get("checkpoint", path)))
    config = _read(home / "config.yaml")
    final = _read(home / "metrics.json")
    if not isinstance(config.get("model"), dict):
        raise DataError(f"{home / 'config.yaml'}: not the configuration of a run (no model in it)")
    try:
        settings = run_settings(config)
    except ValueError as error:
        raise DataError(f"{home / 'config.yaml'}: damaged (it {first_line(error)})") from error
    return Run(
        path=path,
        settings=settings | _protocol(evaluation),
        seed=config.get("seed"),
        numbers=_measured(evaluation or final) | _costs(final, context),
        context=context,
        provenance=config.get("provenance") or {},
        last_step=final.get("step"),
    )


def _read(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file; nothing where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else plain_yaml(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged (a mapping of names was expected)")
    return content


def _protocol(evaluation: dict[str, Any]) -> dict[str, str]:
    """How a run was evaluated, as settings."""
    context = evaluation.get("context", {})
    chosen = {name: context[name] for name in PROTOCOL if context.get(name) is not None}
    evaluated = "yes" if evaluation else "no"
    return {"evaluation": evaluated} | flat_settings(chosen, "evaluation")


def _costs(final: dict[str, Any], context: dict[str, Any]) -> dict[str, Number]:
    """Parameters and times, of the evaluation where it has them, else of the end of training."""
    known = final | {name: context[name] for name in OF_EVALUATION if name in context}
    return {name: Number(known[name]) for name in COSTS if known.get(name) is not None}


def _measured(content: dict[str, Any]) -> dict[str, Number]:
    details = content.get("details", {})
    return {
        name: _number(value, details.get(name, {}))
        for name, value in content.items()
        if name.startswith(STAGES)
    }


def _number(value: float | None, details: dict[str, Any]) -> Number:
    fields = ("error", "error_kind", "reason", "context")
    known = {name: details[name] for name in fields if name in details}
    if value is not None and not math.isfinite(value):
        known |= {"error": None, "reason": f"not finite ({value})"}
        return Number(None, **known)
    return Number(value, **known)
