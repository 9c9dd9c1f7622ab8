"""Fréchet distance of two sets of features, each taken for a Gaussian (Dowson & Landau 1982; FID: Heusel et al. 2017).

d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from src.errors import ConfigError, require


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982, eq. 4), what "FID" reports.

    mean: (d,); cov: (d, d) symmetric, of any rank; returns a float64 scalar >= 0 on their device. Raises ValueError for
    NaN or infinite values. Uses tr (S_1 S_2)^(1/2) = sum sqrt(eigenvalues of A^T S_2 A) with S_1 = A A^T: all
    matrices are symmetric, so no complex numbers appear as in sqrtm, and A has only as many columns as S_1 has rank.
    """
    mean_1, cov_1, mean_2, cov_2 = (value.to(torch.float64) for value in (mean_1, cov_1, mean_2, cov_2))
    _check(mean_1, cov_1, mean_2, cov_2)
    root = _root(cov_1)
    product = root.T @ cov_2 @ root
    trace_root = _eigenvalues((product + product.T) / 2).clamp(min=0).sqrt().sum()
    squared = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * trace_root
    return squared.clamp(min=0)  # equal inputs leave rounding of either sign


class FrechetDistance(Metric):
    """Fréchet distance of real and generated features from sums that add up over batches and ranks (FID).

    num_features: d. reset_real: False keeps the real features' sums over ``reset()``, as the data do not change.

    States are n, sum x and sum x x^T in float64, for each side: 53 bits leave the covariance 1e-9 exact even where the
    mean is 1000 standard deviations, so one pass is enough (in float32 it is not: negative eigenvalues). Casts such as
    ``.half()`` or ``.to(torch.bfloat16)`` move the states but never change their dtype. Call ``update`` rather than the
    metric itself: a single batch holds one side only.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    real_n: Tensor
    real_sum: Tensor
    real_outer: Tensor
    fake_n: Tensor
    fake_sum: Tensor
    fake_outer: Tensor

    def __init__(self, num_features: int, reset_real: bool = True) -> None:
        require(num_features >= 1, "num_features", num_features, "must be 1 or more")
        super().__init__()
        self.num_features, self.reset_real = num_features, reset_real
        for side in ("real", "fake"):
            for name, shape in (("n", ()), ("sum", (num_features,)), ("outer", (num_features, num_features))):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", default=zeros, dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Add a batch of features (B, d), of the data (``real=True``) or generated ones; B may be 0."""
        if features.dim() != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected (B, {self.num_features})")
        x = features.detach().to(device=self.real_sum.device, dtype=torch.float64)
        if real:
            self.real_n, self.real_sum, self.real_outer = _add(x, self.real_n, self.real_sum, self.real_outer)
        else:
            self.fake_n, self.fake_sum, self.fake_outer = _add(x, self.fake_n, self.fake_sum, self.fake_outer)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar. Raises ValueError for n < 2 or non-finite features, on either side."""
        real = _moments("real", self.real_n, self.real_sum, self.real_outer)
        fake = _moments("generated", self.fake_n, self.fake_sum, self.fake_outer)
        return frechet_distance(*real, *fake)

    def reset(self) -> None:
        """Forget the sums; with ``reset_real=False`` those of the generated features alone."""
        kept = None if self.reset_real else (self.real_n, self.real_sum, self.real_outer)
        super().reset()
        if kept is not None:
            self.real_n, self.real_sum, self.real_outer = kept

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> FrechetDistance:
        # torchmetrics guards .half() and .float(), but not .to(dtype) nor set_dtype
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)


def _add(x: Tensor, n: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return n + x.shape[0], total + x.sum(dim=0), outer + x.T @ x


def _moments(side: str, n: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance from the sums."""
    if n < 2:
        raise ConfigError(f"the Fréchet distance needs 2 or more {side} images for a covariance, it got {int(n)}")
    if not (total.isfinite().all() and outer.isfinite().all()):
        raise ValueError(f"features of the {side} images hold NaN or infinite values")
    mean = total / n
    return mean, (outer - torch.outer(total, mean)) / (n - 1)


def _check(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> None:
    size = mean_1.shape[0] if mean_1.dim() == 1 else 0
    expected = {"mean_1": (size,), "cov_1": (size, size), "mean_2": (size,), "cov_2": (size, size)}
    for (name, shape), value in zip(expected.items(), (mean_1, cov_1, mean_2, cov_2), strict=True):
        if size == 0 or value.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}: give means (d,) and covariances (d, d) of one d >= 1"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")


def _root(cov: Tensor) -> Tensor:
    """A (d, rank) with A A^T = cov; eigenvalues within rounding of 0 are left out, or N < d would add their noise."""
    try:
        values, vectors = torch.linalg.eigh(cov)
    except torch.linalg.LinAlgError as error:
        raise ValueError("the eigenvalues of a covariance did not converge") from error
    keep = values > values[-1] * cov.shape[0] * torch.finfo(cov.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()


def _eigenvalues(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError as error:
        raise ValueError("the eigenvalues of a product of covariances did not converge") from error
