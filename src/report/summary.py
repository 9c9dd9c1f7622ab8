"""What a run leaves for its reader: metrics.json, the loss curves, and a summary on the terminal."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from src.config.command import resume_command, short
from src.report.readings import reading


def show_metrics(metrics: Mapping[str, float], title: str) -> Console:
    """Print the test and validation metrics as a table with a reading aid; returns the console for more lines."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("reading")
    for name in sorted(metrics, key=lambda n: (not n.startswith("test/"), n)):
        if name.startswith(("test/", "val/")):
            table.add_row(
                name,
                "–" if math.isnan(metrics[name]) else f"{metrics[name]:.4g}",
                reading(name, metrics),
            )
    console.print(table)
    return console


def show_summary(run_dir: Path, metrics: Mapping[str, float]) -> None:
    """Print the metrics, where everything lies, and the commands that sample, evaluate and resume this run."""
    console = show_metrics(metrics, f"Results after {metrics['seconds'] / 60:.1f} min")
    for label, place in _places(run_dir):
        console.print(f"  {label:<15} {place}")
    place = shlex.quote(short(run_dir))
    console.print(
        f"\n  sample    python -m src.sample ckpt_path={place} num_samples=64", markup=False
    )
    console.print(f"  evaluate  python -m src.evaluate ckpt_path={place}", markup=False)
    longer = f"trainer.max_steps={2 * int(metrics['step'])}"
    console.print(f"  resume    {resume_command(run_dir, longer)}", markup=False)


def _places(run_dir: Path) -> list[tuple[str, str]]:
    names = {
        "samples": "samples/final.png",
        "denoising": "samples/denoising.png",
        "reconstruction": "samples/reconstruction.png",
        "loss curves": "samples/curves.png",
        "metrics": "metrics.json",
        "checkpoint": "checkpoints/last.ckpt",
        "config": "config.yaml",
    }
    return [
        (label, f"{short(run_dir)}/{name}")
        for label, name in names.items()
        if (run_dir / name).exists()
    ]
