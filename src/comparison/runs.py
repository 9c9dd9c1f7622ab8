"""Runs that lie on the disk: found by path or pattern, read as plain values; nothing is built."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.config.untrusted import plain_yaml
from src.config.words import option_of, typed
from src.errors import CheckpointError, DataError, StorageError, first_line
from src.rundir.store import run_of

EVALUATION = "evaluation.json"
STAGES = ("test/", "val/", "train/")
COSTS = (
    "parameters",
    "step",
    "seconds",
    "train_seconds",
    "images_per_second",
    "sampling_seconds_per_image",
)
OF_EVALUATION = (
    "parameters",
    "step",
    "sampling_seconds_per_image",
)  # costs that evaluation.json knows better
PROTOCOL = (
    "weights",
    "sampler",
    "sampler_steps",
    "features_key",
    "precision",
)  # what an evaluation may choose anew
HOLDERS = ("model", "callback")  # groups whose nodes may be resolved interpolations of others
OF_ROOT = (
    "image_folder",
    "webdataset",
)  # data sets that their root defines; elsewhere it is a place like any other
OMITTED = {  # names or paths of what is chosen anew for every run, only shown, or the copy of another setting
    *(
        "seed",
        "run_dir",
        "cache_dir",
        "dirpath",
        "save_dir",
        "default_root_dir",
        "resume",
        "optimized_metric",
    ),
    *(
        "provenance",
        "logger",
        "callback.grid",
        "callback.checkpoint",
        "callback.lr_monitor",
        "callback.progress",
    ),
    *(
        "trainer.log_every_n_steps",
        "trainer.enable_model_summary",
        "shape",
        "dataset.load",
        "_target_",
        "_partial_",
    ),
}


@dataclass(frozen=True)
class Number:
    """A measured number. value: None where there is none, then ``reason`` says why. count: runs it is the mean of."""

    value: float | None
    error: float | None = None
    error_kind: str = ""
    reason: str = ""
    context: dict[str, Any] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True)
class Run:
    """settings: as typed on the command line, name -> value. numbers: metrics and costs. context: of the evaluation."""

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
        return git[:7] + "+" * git.endswith("+")


def find_runs(words: Sequence[str]) -> list[Path]:
    """Run directories that the words mean: directories, folders that hold runs, or glob patterns; each run once.

    The output directory of a further evaluation of a run counts as a run. Raises CheckpointError for a word that leads
    to none.
    """
    found = {run.resolve(): run for word in words for run in _runs_of(word)}
    return [
        run
        for place, run in found.items()
        if found.keys().isdisjoint(place.parents) or (run / EVALUATION).exists()
    ]


def _runs_of(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.exists():
        runs = _at_or_below(path)
        reason = "no run directory (no config.yaml there or below); a quoted pattern skips what is no run"
    else:
        runs = [
            run
            for match in glob.glob(str(path), recursive=True)
            for run in _at_or_below(Path(match))
        ]
        reason = "matches no run directory" if glob.has_magic(word) else "no such run directory"
    if not runs:
        raise CheckpointError(f"{word}: {reason}")
    return sorted(runs, key=_natural)


def _at_or_below(path: Path) -> list[Path]:
    runs = []
    for folder, folders, files in os.walk(path):
        if not {"config.yaml", EVALUATION}.isdisjoint(files):
            runs.append(Path(folder))
            folders.clear()  # W&B keeps a config.yaml of its own inside
        folders[:] = [name for name in folders if not name.startswith(".")]
    return runs


def _natural(path: Path) -> list[str | int]:
    """Order in which 10-vae comes after 9-vae."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def read_run(path: Path) -> Run:
    """Settings and numbers: of ``evaluation.json`` where there is one, else of ``metrics.json`` (it may lack both).

    An evaluation that lies elsewhere names its run. Raises DataError where a file is damaged or the run is gone,
    StorageError where it cannot be read.
    """
    evaluation = _read(path / EVALUATION)
    context = evaluation.get("context", {})
    home = (
        path if (path / "config.yaml").exists() else run_of(Path(context.get("checkpoint", path)))
    )
    config, final = _read(home / "config.yaml"), _read(home / "metrics.json")
    if not isinstance(config.get("model"), dict):
        raise DataError(f"{home / 'config.yaml'}: not the configuration of a run (no model in it)")
    costs = final | {name: context[name] for name in OF_EVALUATION if name in context}
    numbers = {name: Number(costs[name]) for name in COSTS if costs.get(name) is not None}
    protocol = {name: context[name] for name in PROTOCOL if context.get(name) is not None}
    return Run(
        path=path,
        settings=_settings(config)
        | {"evaluation": "yes" if evaluation else "no"}
        | _typed(protocol, "evaluation"),
        seed=config.get("seed"),
        numbers=_measured(evaluation or final) | numbers,
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


def _measured(content: dict[str, Any]) -> dict[str, Number]:
    details = content.get("details", {})
    return {
        name: _number(value, details.get(name, {}))
        for name, value in content.items()
        if name.startswith(STAGES)
    }


def _number(value: float | None, details: dict[str, Any]) -> Number:
    known = {
        name: details[name]
        for name in ("error", "error_kind", "reason", "context")
        if name in details
    }
    if value is not None and not math.isfinite(value):
        return Number(None, **known | {"error": None, "reason": f"not finite ({value})"})
    return Number(value, **known)


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """Flat settings of a resolved configuration, the model first, as they are typed: ``{"schedule": "cosine"}``."""
    originals = [
        config,
        *(node for key, node in config.items() if isinstance(node, dict) and key not in HOLDERS),
    ]
    config = {"model": None} | config
    held = {
        key: _own(config[key], originals) for key in HOLDERS if isinstance(config.get(key), dict)
    }
    settings = _typed(config | held)
    if settings.get("dataset") not in OF_ROOT:
        settings.pop("dataset.root", None)
    return settings


def _own(node: dict[str, Any], originals: list[dict[str, Any]]) -> dict[str, Any]:
    """The node without what it holds as a copy: ``model.schedule`` repeats ``schedule``."""
    return {
        key: _own(value, originals) if isinstance(value, dict) else value
        for key, value in node.items()
        if not (
            isinstance(value, dict) and any(value == original.get(key) for original in originals)
        )
    }


def _typed(node: dict[str, Any], path: str = "") -> dict[str, str]:
    return {name: typed(value) for name, value in _flat(node, path)}


def _flat(
    node: dict[str, Any], path: str = "", above: str | None = None
) -> Iterator[tuple[str, Any]]:
    option = None if path in ("", "callback", "evaluation") else option_of(node)
    if option not in (None, above):
        yield path, option
    for key, value in node.items():
        name = f"{path}.{key}".lstrip(".")
        if OMITTED.isdisjoint((key, name)):
            yield from (
                _flat(value, name, option or above) if isinstance(value, dict) else [(name, value)]
            )
