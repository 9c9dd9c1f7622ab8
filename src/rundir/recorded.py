"""The configuration inside a checkpoint; torch is imported when one is read, not before."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def config_inside(path: Path, setting: str, trusted: Collection[str]) -> dict[str, Any]:
    """That of a checkpoint file, or of the last one of a run directory; see ``read_checkpoint``."""
    from src.rundir.checkpoint import read_checkpoint

    return read_checkpoint(path, setting, trusted)["config"]
