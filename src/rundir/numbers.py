"""The numbers that a run leaves: ``metrics.json``, and ``pruned.json`` of a pruned job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.foreign import NUMBER, checked, naming, read_json

MOST = 5000  # numbers of a file
LONGEST = 300  # characters of a name

Numbers = dict[str, int | float | None]  # None: there is none, or it was not finite


def read_numbers(path: Path) -> Numbers:
    """All numbers of the file.

    Raises FileNotFoundError where there is none, DataError where it is anything but names and
    numbers, StorageError where it cannot be read.
    """
    with naming(path):
        return check_numbers(read_json(path))


def check_numbers(content: Mapping[str, Any]) -> Numbers:
    """The content as numbers; raises ValueError with the reason."""
    if len(content) > MOST or any(len(name) > LONGEST for name in content):
        most = f"{MOST} numbers, or a name of more than {LONGEST} letters"
        raise ValueError(f"holds more than {most}")
    return checked(content, dict.fromkeys(content, NUMBER))
