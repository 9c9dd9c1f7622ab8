"""Figures of matplotlib, drawn without a display: as PNG files and as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.files import atomic_path

DPI = 110


def blank(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture_of(figure: Figure) -> np.ndarray:
    """The drawn figure as an RGB picture (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, target: Path) -> None:
    """Write the figure as a PNG file atomically; raises StorageError."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png")


def log_scale_helps(values: list[float]) -> bool:
    """Whether the values are positive and spread over more than an order of magnitude."""
    return min(values) > 0 and max(values) > 20 * min(values)
