"""The history of a run: every number that was logged, over the optimiser step."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# of metrics.json, beside those that begin with "time/"
TIMES = ("seconds", "train_seconds", "step_seconds", "images_per_second", "peak_memory_gib")
PART = re.compile(r"metrics-(\d+)\.csv", re.ASCII)  # of an earlier part of the run
History = dict[str, tuple[list[int], list[float]]]  # name -> steps, values


def is_time(name: str) -> bool:
    """Whether a number tells the speed or size of a run: it differs between equal runs."""
    return name in TIMES or name.startswith("time/")


def read_history(run_dir: Path) -> History:
    """All metrics of a run; where a resumed part repeats steps, the later part counts."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in history_files(run_dir):
        for row in _rows(path):
            step = int(row["step"])
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    found[name][step] = float(value)
    return {name: _in_order(values) for name, values in found.items()}


def history_files(run_dir: Path) -> list[Path]:
    """The parts of a run's history, oldest first; ``metrics-old.csv`` is the user's, and none."""
    parts = ((PART.fullmatch(path.name), path) for path in run_dir.glob("metrics-*.csv"))
    older = sorted((int(name[1]), path) for name, path in parts if name)
    return [*(path for _, path in older), *run_dir.glob("metrics.csv")]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
    return csv.DictReader(io.StringIO(whole))


def _in_order(values: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(values)
    return steps, [values[step] for step in steps]
