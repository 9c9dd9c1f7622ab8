"""The terms of the variational bound of a diffusion model over time, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from src.model.base import Scores
from src.report import escape
from src.report.figure import blank, picture_of

BINS = 100  # over t


def bound_terms(scores: Scores, image_shape: Sequence[int]) -> np.ndarray:
    """L_t over t in bits/dim, a curve for each variance (Nichol & Dhariwal 2021, fig. 2).

    Returns an RGB picture (H, W, 3) uint8.
    """
    times = scores.times.flatten()
    unit = math.prod(image_shape) * math.log(2)
    last = int(times.max())
    edges = torch.linspace(1.5, last + 0.5, min(BINS, last - 1) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    where = torch.bucketize(times.float(), edges) - 1
    counts = torch.bincount(where, minlength=len(edges) - 1)
    seen = counts > 0
    figure = blank(7, 4)
    axes = figure.subplots()
    for name, values in scores.parts.items():
        if values.dim() != 2:
            continue
        sums = torch.bincount(where, values.flatten().double(), len(counts))
        means = sums[seen] / counts[seen] / unit
        # the two mostly lie on each other
        line = "--" if axes.lines else "-"
        variance = escape.label(name.removeprefix("L_t_"))
        axes.plot(centres[seen], means, line, label=f"variance {variance}")
    label = "$L_t$ (bits/dim per step)"
    axes.set(xlabel="t", ylabel=label, yscale="log", title="Terms of the variational bound")
    axes.grid(alpha=0.3)
    axes.legend()
    return picture_of(figure)
