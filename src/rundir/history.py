"""The history of a run: every number that was logged, over the optimiser step."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from src.files import read_regular
from src.foreign import naming

MAX_NAMES = 10_000
# of metrics.json, beside those that begin with "time/"
TIMES = ("seconds", "train_seconds", "step_seconds", "images_per_second", "peak_memory_gib")
EARLIER = re.compile(r"metrics-([0-9]{1,9})\.csv")  # of an earlier part of the run
STEP = re.compile(r"[0-9]{1,18}")
MAX_HISTORY = 2**28  # bytes
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

    Raises DataError where a file is damaged, StorageError where it cannot be read.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in histories(run_dir):
        with naming(path):
            for step, numbers in _rows(path):
                for name, value in numbers.items():
                    found[name][step] = value
                if len(found) > MAX_NAMES:
                    raise ValueError(f"holds more than {MAX_NAMES} metrics")
    return {name: _in_order(values) for name, values in found.items()}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and numbers of each whole line; raises ValueError for any other."""
    content = read_regular(path, MAX_HISTORY)
    whole = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a line
    rows = csv.DictReader(io.StringIO(whole.decode()))
    try:
        for row in rows:
            if None in row or not STEP.fullmatch(row.get("step") or ""):
                raise ValueError("no step, or more values than names")
            numbers = {}
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    numbers[name] = float(value)
            yield int(row["step"]), numbers
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error


def _in_order(values: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(values)
    return steps, [values[step] for step in steps]
