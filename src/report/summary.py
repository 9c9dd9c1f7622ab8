"""What a run leaves for its reader: metrics.json, the loss curves, and a summary on the terminal."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from src.files import atomic_path
from src.report.readings import reading
from src.rundir.directory import typed_overrides

ONCE = (
    "run_dir=",
    "resume=",
    "ckpt_path=",
    "init_from=",
)  # words that a further start has its own of
PATH_IN_QUOTES = re.compile(r"^([\w.]+=)'([^'\\]*)'$")  # as the command line hands paths to Hydra
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


def draw_curves(history: History, target: Path) -> None:
    """Loss curves, and the Fréchet distance beside them where it was measured, as one PNG."""
    losses = [name for name in ("train/loss", "val/loss") if name in history]
    distances = [name for name in history if name.startswith("val/fid_")]
    panels = [names for names in (losses, distances) if names]
    if not panels:
        return
    figure = Figure(figsize=(5.5 * len(panels), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            sparse = len(history[name][0]) < 30
            axes.plot(
                *history[name],
                label=name,
                marker="o" if sparse else None,
                markersize=4,
                linewidth=1.2,
            )
        values = [value for name in names for value in history[name][1]]
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png")


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
    place = shlex.quote(_short(run_dir))
    console.print(
        f"\n  sample    python -m src.sample ckpt_path={place} num_samples=64", markup=False
    )
    console.print(f"  evaluate  python -m src.evaluate ckpt_path={place}", markup=False)
    longer = f"trainer.max_steps={2 * int(metrics['step'])}"
    console.print(f"  resume    {resume_command(run_dir, longer)}", markup=False)


def resume_command(run_dir: Path, *more: str) -> str:
    """What to type to go on with a run that was started by this command line."""
    return train_command(f"hydra.run.dir={_short(run_dir)}", "resume=auto", *more)


def train_command(*words: str) -> str:
    """This command line again, with other words about where it begins and ends, and these."""
    new = tuple(f"{word.partition('=')[0]}=" for word in words)
    again = [
        PATH_IN_QUOTES.sub(r"\1\2", word)
        for word in typed_overrides()
        if not word.startswith((*ONCE, *new))
    ]
    return f"python -m src.train {' '.join(map(shlex.quote, [*again, *words]))}"


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
        (label, f"{_short(run_dir)}/{name}")
        for label, name in names.items()
        if (run_dir / name).exists()
    ]


def _short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
