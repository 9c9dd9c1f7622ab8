"""The history of a run: every number that was logged, over the optimiser step."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from src.errors import StorageError, first_line
from src.files import read_regular

MAX_HISTORY = 2**30  # bytes; a million steps of 30 numbers are half of that
MAX_NAMES = 10_000
EARLIER = re.compile(r"metrics-(\d{1,9})\.csv")
# of metrics.json, beside those that begin with "time/"
TIMES = ("seconds", "train_seconds", "step_seconds", "images_per_second", "peak_memory_gib")
History = dict[str, tuple[list[int], list[float]]]  # name -> steps, values


def is_time(name: str) -> bool:
    """Whether a number tells the speed or size of a run: it differs between equal runs."""
    return name in TIMES or name.startswith("time/")


def histories(run_dir: Path) -> list[Path]:
    """The files that hold a run's numbers, in their order: metrics-1.csv, -2, metrics.csv.

    Others, as ``metrics-old.csv``, are the user's own.
    """
    named = ((EARLIER.fullmatch(path.name), path) for path in run_dir.glob("metrics-*.csv"))
    numbered = sorted((int(name[1]), path) for name, path in named if name)
    return [*(path for _, path in numbered), *run_dir.glob("metrics.csv")]


def read_history(run_dir: Path) -> History:
    """All metrics of a run; where a resumed part repeats steps, the later part counts.

    Raises StorageError naming the file where one is no regular file, longer than MAX_HISTORY, of
    more than MAX_NAMES metrics, or no table of numbers.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in histories(run_dir):
        try:
            for row in _rows(path):
                _take(row, found)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            why = f"it is no history of a run ({first_line(error)}); move it away"
            raise StorageError(f"cannot read {path}: {why}") from error
    return {name: _in_order(values) for name, values in found.items()}


def _take(row: dict[str, str], found: dict[str, dict[int, float]]) -> None:
    """Add the numbers of one step."""
    step = int(row["step"])
    for name, value in row.items():
        if name not in ("step", "epoch") and value:
            found[name][step] = float(value)
    if len(found) > MAX_NAMES:
        raise ValueError(f"more than {MAX_NAMES} metrics")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    text = read_regular(path, MAX_HISTORY).decode()
    whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
    return csv.DictReader(io.StringIO(whole))


def _in_order(values: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(values)
    return steps, [values[step] for step in steps]
