"""Figures of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.model.base import Scores

BINS = 100  # over t


def bound_terms(scores: Scores, image_shape: Sequence[int]) -> np.ndarray:
    """The terms L_t of the variational bound over t in bits/dim, for each variance (Nichol & Dhariwal 2021, fig. 2).

    Returns an RGB picture (H, W, 3) uint8.
    """
    times, unit = scores.times.flatten(), math.prod(image_shape) * math.log(2)
    edges = torch.linspace(1.5, float(times.max()) + 0.5, min(BINS, int(times.max()) - 1) + 1)
    where = torch.bucketize(times.float(), edges) - 1
    counts = torch.bincount(where, minlength=len(edges) - 1)
    seen = counts > 0
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in scores.parts.items():
        if values.dim() == 2:
            line = "--" if axes.lines else "-"  # the two mostly lie on each other
            means = (
                torch.bincount(where, values.flatten().double(), len(counts))[seen]
                / counts[seen]
                / unit
            )
            axes.plot(
                ((edges[1:] + edges[:-1]) / 2)[seen],
                means,
                line,
                label=f"variance {name.removeprefix('L_t_')}",
            )
    axes.set(
        xlabel="t",
        ylabel="$L_t$ (bits/dim per step)",
        yscale="log",
        title="Terms of the variational bound",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
