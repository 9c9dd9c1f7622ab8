"""The history of a run: every number that was logged, over the optimiser step."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from src.errors import StorageError
from src.files import read_regular

MAX_HISTORY = 2**30  # bytes; a million steps of 30 numbers are half of that
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

    Raises StorageError naming the file where one is no regular file or longer than MAX_HISTORY.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in histories(run_dir):
        for row in _rows(path):
            step = int(row["step"])
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    found[name][step] = float(value)
    return {name: _in_order(values) for name, values in found.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        text = read_regular(path, MAX_HISTORY).decode()
    except ValueError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
    return csv.DictReader(io.StringIO(whole))


def _in_order(values: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(values)
    return steps, [values[step] for step in steps]
