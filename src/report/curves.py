"""The loss curves of a run as a picture."""

from __future__ import annotations

import math
from pathlib import Path

from src.report.escape import label
from src.report.figure import blank, log_scale_helps, save_figure
from src.rundir.history import History

LARGEST = 1e100  # of what is drawn; beyond, matplotlib's ticks overflow
SPARSE = 30  # points; a curve of fewer has markers


def draw_curves(history: History, target: Path) -> None:
    """Loss curves, and the Fréchet distance beside them where it was measured, as one PNG."""
    losses = [name for name in ("train/loss", "val/loss") if name in history]
    distances = [name for name in history if name.startswith("val/fid_")]
    panels = [names for names in (losses, distances) if names]
    if not panels:
        return
    figure = blank(5.5 * len(panels), 3.6)
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            steps, values = history[name]
            marker = "o" if len(steps) < SPARSE else None
            axes.plot(
                steps,
                [*map(_drawn, values)],
                label=label(name),
                marker=marker,
                markersize=4,
                linewidth=1.2,
            )
        values = [_drawn(value) for name in names for value in history[name][1]]
        if log_scale_helps(values):
            axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, target)


def _drawn(value: float) -> float:
    """The value, NaN (a gap) where it is too large for an axis."""
    return value if abs(value) < LARGEST else math.nan
