"""The table of a sweep: job, overrides, status, metric, run directory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.files import write_text
from src.foreign import printable
from src.report.escape import comma_separated

COLUMNS = ("job", "overrides", "status", "metric", "run_dir", "detail")
LONG_NUMBER = re.compile(r"\d+\.\d{5,}(e[-+]?\d+)?")


def write_jobs(jobs: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write ``jobs.csv``: all jobs of a sweep directory as recorded, with all their overrides."""
    rows: list[Sequence[object]] = [COLUMNS]
    for job in jobs:
        cells = [job[name] for name in ("status", "metric", "run_dir", "detail")]
        rows.append([job["number"], " ".join(job["overrides"]), *cells])
    write_text(target, comma_separated(rows))


def print_jobs(jobs: Sequence[Mapping[str, Any]], table: Path) -> None:
    """Print the jobs: of the overrides their own, of the run directories the names.

    table: the file that has all overrides.
    """
    measured = {job.get("metric_name") for job in jobs} - {None}
    metric = measured.pop() if len(measured) == 1 else "metric"
    header = tuple(metric if name == "metric" else name for name in COLUMNS)
    rows = []
    for row in (header, *map(_row, jobs)):
        rows.append([printable(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print(printable(f"{table} has all overrides"), flush=True)


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    metric = "" if job["metric"] is None else f"{job['metric']:.6g}"
    name = LONG_NUMBER.sub(lambda number: f"{float(number[0]):.4g}", job.get("name", ""))
    place = Path(job["run_dir"]).name
    return (str(job["number"]), name, job["status"], metric, place, job["detail"])
