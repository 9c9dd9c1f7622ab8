"""The loss curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.files import atomic_path
from src.rundir.history import History


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
