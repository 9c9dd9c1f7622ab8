"""Kernel distance: squared MMD with a cubic kernel (KID: Bińkowski et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.errors import require
from src.metric.base import Measurement, Samples, evenly_spaced, row_blocks

LEAST = 4  # images: the squares of doubly centred kernel values have n (n - 3) degrees of freedom


class Kid:
    """The kernel distance of generated to real images, smaller is better (Bińkowski et al. 2018).

    Squared maximum mean discrepancy, unbiased, so about 0, of either sign, for a perfect model. The
    error is its standard error. max_images: of each side, the first generated and evenly spaced
    real ones. Raises ValueError for fewer than 4 images.
    """

    names = ("kid",)

    def __init__(self, max_images: int = 10_000) -> None:
        require(max_images >= LEAST, "max_images", max_images, f"must be {LEAST} or more")
        self.max_images = max_images

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure over all pairs."""
        real = evenly_spaced(samples.real.features, self.max_images)
        fake = samples.fake[: self.max_images]
        value, error = kernel_distance(real, fake)
        context = {"n_real": len(real), "n_fake": len(fake), "kernel": "(x.y / d + 1)^3"}
        return {"kid": Measurement(value, error, "standard error", context=context)}


def kernel_distance(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Unbiased MMD^2 (Gretton et al. 2012, eq. 3) with kernel (x.y / d + 1)^3; its standard error.

    real (n, d), fake (m, d) of any dtype, computed in float64 over all pairs; the value may be
    negative. Raises ValueError for n or m below 4.

    Error: with k the doubly centred kernel and h = E k(., x) - E k(., y) the witness function, the
    variance is L + V, L = 4 Var h(x) / n + 4 Var h(y) / m and V = 2 E k(x, x')^2 / (n (n - 1))
    + 2 E k(y, y')^2 / (m (m - 1)) + 4 E k(x, y)^2 / (n m), the whole where the distributions are
    equal. h estimated from the rows of the kernel matrices brings L + 2 V (as a jackknife does), so
    V is subtracted; the result is never below V. V is estimated without bias from U-centred
    matrices (Székely & Rizzo 2014, section 2).
    """
    n, m = len(real), len(fake)
    if min(n, m) < LEAST:
        needed = f"the kernel distance needs {LEAST} or more images"
        raise ValueError(f"{needed}, it got {n} and {m}")
    x = real.to(torch.float64)
    y = fake.to(torch.float64)
    xx = _sums(x, x)
    yy = _sums(y, y)
    xy = _sums(x, y)
    real_witness = xx.rows / (n - 1) - xy.rows / m
    fake_witness = xy.columns / n - yy.rows / (m - 1)
    value = real_witness.mean() - fake_witness.mean()
    first_order = 4 * real_witness.var() / n + 4 * fake_witness.var() / m
    within = 2 * _within(xx) / (n * (n - 1)) + 2 * _within(yy) / (m * (m - 1))
    second_order = within + 4 * _between(xy) / (n * m)
    second_order = second_order.clamp(min=0)  # rounding, where all images are equal
    return float(value), float(torch.maximum(first_order - second_order, second_order).sqrt())


class _Sums(NamedTuple):
    """Sums of a kernel matrix over each row (n,) and column (m,), and of its squares.

    Of a set with itself: over i != j.
    """

    rows: Tensor
    columns: Tensor
    squares: Tensor


def _sums(x: Tensor, y: Tensor) -> _Sums:
    rows = x.new_zeros(len(x))
    columns = x.new_zeros(len(y))
    squares = x.new_zeros(())
    for block in row_blocks(len(x), len(y)):
        kernel = (x[block] @ y.T / x.shape[1] + 1) ** 3
        if x is y:
            kernel.diagonal(offset=block.start).zero_()
        rows[block] = kernel.sum(dim=1)
        columns += kernel.sum(dim=0)
        squares += kernel.square().sum()
    return _Sums(rows, columns, squares)


def _within(k: _Sums) -> Tensor:
    """E k(x, x')^2 of the doubly centred kernel, unbiased."""
    n = len(k.rows)
    centred = (
        k.squares
        - 2 * k.rows.square().sum() / (n - 2)
        + k.rows.sum().square() / ((n - 1) * (n - 2))
    )
    return centred / (n * (n - 3))


def _between(k: _Sums) -> Tensor:
    """E k(x, y)^2 of the doubly centred kernel, unbiased."""
    n, m = len(k.rows), len(k.columns)
    centred = (
        k.squares
        - k.rows.square().sum() / m
        - k.columns.square().sum() / n
        + k.rows.sum().square() / (n * m)
    )
    return centred / ((n - 1) * (m - 1))
