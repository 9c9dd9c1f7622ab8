"""Fréchet distance of two sets of features, each taken for a Gaussian (Dowson & Landau 1982).

What "FID" reports (Heusel et al. 2017) is its square:
d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 4096  # features in float64 at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of features, float64.

    n: of how many features (0 where the moments are given).
    """

    mean: Tensor
    cov: Tensor
    n: int = 0

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (n, d) of any dtype, on their device.

        Raises ValueError for n < 2 and for NaN or infinite values. Data are centred before they are
        multiplied: sums of squares would cancel where the mean is large against the standard
        deviation.
        """
        n = len(features)
        if n < 2:
            raise ValueError(f"a covariance needs 2 or more images, it got {n}")
        mean = features.mean(dim=0, dtype=torch.float64)
        cov = mean.new_zeros(len(mean), len(mean))
        for part in features.split(CHUNK):
            centred = part.to(torch.float64) - mean
            cov.addmm_(centred.T, centred)
        if not cov.isfinite().all():
            raise ValueError("features hold NaN or infinite values")
        return cls(mean, cov / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """A (d, rank) with A A^T = cov and orthogonal columns, computed once.

        Eigenvalues within rounding of 0 are left out, or n < d would add their noise.
        """
        values, vectors = eigen(self.cov)
        return vectors * values.sqrt()


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (rank,) and vectors (d, rank) of a positive semi-definite matrix.

    Those within rounding of 0 are left out. Raises ValueError where they do not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:
        raise ValueError("the eigenvalues of a covariance did not converge") from error
    keep = values > values[-1:] * len(values) * torch.finfo(values.dtype).eps
    return values[keep], vectors[:, keep]


def distance(a: Moments, b: Moments, scales: Tensor | None = None) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982, eq. 4), what "FID" reports.

    Returns a float64 scalar >= 0 on their device. Uses tr (S_a S_b)^(1/2) = sum of ``scales``,
    those of ``coupling`` unless given: all matrices are symmetric, so no complex numbers appear as
    in sqrtm.
    """
    scales = coupling(a, b)[0] if scales is None else scales
    squared = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * scales.sum()
    return squared.clamp(min=0)  # equal inputs leave rounding of either sign


def coupling(a: Moments, b: Moments) -> tuple[Tensor, Tensor]:
    """Scales s (rank,) and eigenvectors (rank_a, rank) of ``overlap``.

    The scales are the roots of the eigenvalues of S_a S_b that are not 0. The moments that are used
    again go first, as their root is kept. Raises ValueError where nothing converges.
    """
    values, vectors = eigen(overlap(a, b))
    return values.sqrt(), vectors


def overlap(a: Moments, b: Moments) -> Tensor:
    """A^T S_b A (rank, rank), whose eigenvalues are those of S_a S_b that are not 0."""
    product = a.root.T @ b.cov @ a.root
    return (product + product.T) / 2


def covariance_part(scales: Tensor, n: int, m: int) -> tuple[float, float]:
    """Mean and variance of the second-order term in d^2 from errors of two sample covariances.

    scales (rank,): square roots s of the eigenvalues of S_a S_b. A deviation G of A^T S_b A, in its
    eigenbasis, changes -2 tr (A^T S_b A)^(1/2) by 1/2 sum_ij G_ij^2 / (s_i s_j (s_i + s_j)), and
    for Gaussian samples E G_ij^2 = (1 + [i = j]) s_i^2 s_j^2 / m; the other side is the same with
    n. The variance is that for S_a = S_b, where s are their eigenvalues and the deviations of both
    sides form one.
    """
    total = scales[:, None] + scales
    pairs = torch.where(total > 0, scales[:, None] * scales / total, 0)  # 0 / 0 where both are 0
    mean = pairs.sum() / 2 + scales.sum() / 4
    variance = pairs.square().sum() + scales.square().sum() / 4
    return float(mean) * (1 / n + 1 / m), float(variance) * (1 / n + 1 / m) ** 2
