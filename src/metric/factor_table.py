"""Codes and ground-truth factors of all images, from which the disentanglement metrics sample.

disentanglement_lib (Locatello et al. 2019) renders an image for each factor vector that it draws;
here each draw is a row of a table of images that are encoded already, which is the same where the
table holds the full grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Relative variance below which a latent is the rounding of a constant, as with Kumar et al. 2018.
ROUNDING = 1e-12


class Points(NamedTuple):
    """Codes (n, L) and factor levels (n, F) of the same n images."""

    codes: Floats
    factors: Ints


class FactorTable:
    """All images as codes (N, L) and factor levels (N, F), to draw rows from.

    A full or a partial grid. Levels are numbered 0, 1, ... in their order; a factor that never
    changes is dropped, as it has no entropy. A collapsed latent (variance of rounding alone)
    becomes 0: a histogram would stretch its noise to look like any other code.

    Raises ValueError for other shapes, NaN or infinite codes, fewer than 2 latents or than 2
    factors that change, and where every latent has collapsed.
    """

    def __init__(self, codes: Tensor, factors: Tensor) -> None:
        if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors):
            found = f"codes {tuple(codes.shape)} and factors {tuple(factors.shape)}"
            raise ValueError(f"{found} must be (N, L) and (N, F)")
        self.codes = _without_rounding(codes.detach().cpu().double().numpy())
        self.factors = _levels(factors.cpu().numpy())
        self._order = self.factors.argsort(axis=0, kind="stable").T
        most = int(self.factors.max()) + 1
        self._count = np.stack([np.bincount(level, minlength=most) for level in self.factors.T])
        self._start = self._count.cumsum(axis=1) - self._count

    def points(self, num: int, generator: torch.Generator) -> Points:
        """Codes and factors of ``num`` rows, drawn with replacement."""
        rows = torch.randint(len(self.codes), (num,), generator=generator).numpy()
        return Points(self.codes[rows], self.factors[rows])

    def shared(self, num: int, batch_size: int, generator: torch.Generator) -> tuple[Ints, Ints]:
        """Batches whose images share the level of one factor.

        Returns which factor, (num,), and the rows of the images, (num, batch_size).
        """
        factor, rows = self._draw(num, 1, generator)
        return factor, self._companions(factor, rows.repeat(batch_size, axis=1), generator)

    def pairs(
        self, num: int, batch_size: int, generator: torch.Generator
    ) -> tuple[Ints, Ints, Ints]:
        """Batches of pairs that share the level of one factor.

        Returns which factor, (num,), and the rows of either side, (num, batch_size) each.
        """
        factor, rows = self._draw(num, batch_size, generator)
        return factor, rows, self._companions(factor, rows, generator)

    def _draw(self, num: int, batch_size: int, generator: torch.Generator) -> tuple[Ints, Ints]:
        factor = torch.randint(self.factors.shape[1], (num,), generator=generator)
        rows = torch.randint(len(self.codes), (num, batch_size), generator=generator)
        return factor.numpy(), rows.numpy()

    def _companions(self, factor: Ints, rows: Ints, generator: torch.Generator) -> Ints:
        """For each row one with the same level of its batch's factor, all equally likely."""
        factor = factor[:, None]
        level = self.factors[rows, factor]
        uniform = torch.rand(rows.shape, generator=generator, dtype=torch.float64).numpy()
        place = (uniform * self._count[factor, level]).astype(np.int64)
        return self._order[factor, self._start[factor, level] + place]


def _without_rounding(codes: Floats) -> Floats:
    if not np.isfinite(codes).all():
        raise ValueError("codes hold NaN or infinite values")
    if codes.shape[1] < 2:
        raise ValueError(f"{codes.shape[1]} latent: gaps and entropies over latents need 2 or more")
    alive = codes.var(axis=0) > ROUNDING * np.maximum(1, codes.mean(axis=0) ** 2)
    if not alive.any():
        problem = f"all {codes.shape[1]} latents have collapsed"
        raise ValueError(f"{problem}: the codes are the same for every image")
    return np.where(alive, codes, 0.0)


def _levels(factors: Ints) -> Ints:
    levels = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    changing = [level for level in levels if level.any()]
    if len(changing) < 2:
        found = f"{len(changing)} of {len(levels)} factors change"
        raise ValueError(f"{found}: disentanglement needs 2 or more")
    return np.stack(changing, axis=1).astype(np.int64)


def in_chunks(function: Callable[..., Floats], *rows: Ints, size: int = 1000) -> Floats:
    """``function`` of arrays of batches (num, B), ``size`` batches at a time.

    All codes at once would fill memory.
    """
    parts = []
    for start in range(0, len(rows[0]), size):
        chunk = [one[start : start + size] for one in rows]
        parts.append(function(*chunk))
    return np.concatenate(parts)
