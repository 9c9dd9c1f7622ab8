"""The history of a run: every number that was logged, over the optimiser step."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

History = dict[str, tuple[list[int], list[float]]]  # name -> steps, values


def read_history(run_dir: Path) -> History:
    """All metrics of a run over the optimiser step; where a resumed part repeats steps, the later part counts."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    older = sorted(run_dir.glob("metrics-*.csv"), key=lambda path: int(path.stem.split("-")[1]))
    for path in [*older, *run_dir.glob("metrics.csv")]:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
        for row in csv.DictReader(io.StringIO(whole)):
            values = {
                name: float(value)
                for name, value in row.items()
                if name not in ("step", "epoch") and value
            }
            for name, value in values.items():
                found[name][int(row["step"])] = value
    return {
        name: (sorted(values), [values[step] for step in sorted(values)])
        for name, values in found.items()
    }
