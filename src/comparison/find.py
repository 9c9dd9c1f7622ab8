"""Finding runs on the disk, by path or by pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from src.comparison.runs import EVALUATION
from src.errors import CheckpointError


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Run directories, each once; a run inside another counts only if it was evaluated.

    Such a directory is the output of a further evaluation of the run around it. Raises
    CheckpointError for a pattern that leads to no run.

    Arguments:
        patterns: run directories, folders that hold runs, or glob patterns.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for run in _runs_of(pattern):
            found[run.resolve()] = run
    return [
        run
        for place, run in found.items()
        if found.keys().isdisjoint(place.parents) or (run / EVALUATION).exists()
    ]


def _runs_of(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.exists():
        places = [path]
        reason = (
            "no run directory (no config.yaml there or below); "
            "a quoted pattern skips what is no run"
        )
    else:
        places = [Path(match) for match in glob.glob(str(path), recursive=True)]
        magic = glob.has_magic(pattern)
        reason = "matches no run directory" if magic else "no such run directory"
    runs = [run for place in places for run in _at_or_below(place)]
    if not runs:
        raise CheckpointError(f"{pattern}: {reason}")
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
