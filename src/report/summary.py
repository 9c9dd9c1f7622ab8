"""The end of a run on the terminal: its metrics, where its files lie, and how to go on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.config.command import resume_command, short
from src.foreign import printable
from src.report.readings import reading
from src.report.table import terminal

SHARE = "time/share_"
FILES = {
    "samples": "samples/final.png",
    "denoising": "samples/denoising.png",
    "reconstruction": "samples/reconstruction.png",
    "loss curves": "samples/curves.png",
    "metrics": "metrics.json",
    "checkpoint": "checkpoints/last.ckpt",
    "config": "config.yaml",
}


def show_metrics(metrics: Mapping[str, float], title: str) -> Console:
    """Print the test and validation metrics with their readings; returns the console used."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("reading")
    shown = [name for name in metrics if name.startswith(("test/", "val/"))]
    for name in sorted(shown, key=lambda name: (not name.startswith("test/"), name)):
        value = "–" if math.isnan(metrics[name]) else f"{metrics[name]:.4g}"
        table.add_row(Text(printable(name)), value, Text(reading(name, metrics)))
    console = terminal(soft_wrap=True)
    console.print(table)
    return console


def show_summary(run_dir: Path, metrics: Mapping[str, float]) -> None:
    """Print metrics, speed, places of the files, and commands that sample, evaluate and resume."""
    console = show_metrics(metrics, f"Results after {metrics['seconds'] / 60:.1f} min")
    for label, text in [*_speed(metrics), *_places(run_dir)]:
        console.print(f"  {label:<15} {printable(text)}", markup=False)
    place = shlex.quote(short(run_dir))
    longer = f"trainer.max_steps={2 * int(metrics['step'])}"
    commands = {
        "sample": f"python -m src.sample ckpt_path={place} num_samples=64",
        "evaluate": f"python -m src.evaluate ckpt_path={place}",
        "resume": resume_command(run_dir, longer),
    }
    console.print()
    for label, command in commands.items():
        console.print(f"  {label:<9} {printable(command)}", markup=False)


def _speed(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Speed and memory of the training, and where its time went; nothing where no step was timed.

    Shares below half a percent are left out.
    """
    if "images_per_second" not in metrics:
        return []
    speed = f"{metrics['images_per_second']:,.0f} images/s"
    speed += f", {metrics['time/ms_per_step']:.3g} ms a step"
    if "time/mfu" in metrics:
        speed += f", {metrics['time/mfu']:.0%} of the FLOP/s that the device has"
    shares = []
    for name, share in metrics.items():
        if name.startswith(SHARE) and share >= 0.005:
            shares.append(f"{name.removeprefix(SHARE)} {100 * share:.0f} %")
    memory = f"{metrics['peak_memory_gib']:.2f} GiB at most"
    return [("speed", speed), ("time", ", ".join(shares)), ("memory", memory)]


def _places(run_dir: Path) -> list[tuple[str, str]]:
    """Labels and paths of the files that are there."""
    there = {label: name for label, name in FILES.items() if (run_dir / name).exists()}
    return [(label, f"{short(run_dir)}/{name}") for label, name in there.items()]
