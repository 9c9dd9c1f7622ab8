"""The table of a sweep: job, overrides, status, metric, run directory."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from src.files import write_text
from src.launch.job import recorded

COLUMNS = ("job", "overrides", "status", "metric", "run_dir", "detail")


def write_table(sweep_dir: Path) -> None:
    """Write ``jobs.csv``: all jobs of the directory, with all their overrides."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for job in recorded(sweep_dir):
        words = " ".join(job["overrides"])
        table.writerow(
            [job["number"], words, job["status"], job["metric"], job["run_dir"], job["detail"]]
        )
    write_text(sweep_dir / "jobs.csv", text.getvalue())


def print_table(sweep_dir: Path) -> None:
    """Print all jobs of the directory: of the overrides their own, of the run directories the names."""
    jobs = recorded(sweep_dir)
    measured = {job.get("metric_name") for job in jobs} - {None}
    rows = [
        tuple(
            measured.pop() if name == "metric" and len(measured) == 1 else name for name in COLUMNS
        )
    ]
    for job in jobs:
        metric = "" if job["metric"] is None else f"{job['metric']:.6g}"
        place = Path(job["run_dir"]).name
        name = re.sub(
            r"\d+\.\d{5,}(e[-+]?\d+)?",
            lambda number: f"{float(number[0]):.4g}",
            job.get("name", ""),
        )
        rows.append((str(job["number"]), name, job["status"], metric, place, job["detail"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(f"{sweep_dir / 'jobs.csv'} has all overrides", flush=True)
