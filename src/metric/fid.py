"""Fréchet distance of generated to real images (FID: Heusel et al. 2017): bias, error, floor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from src.metric.base import Measurement, Reference, Samples, evenly_spaced
from src.metric.frechet import Moments, coupling, covariance_part, distance

ERROR_IMAGES = 10_000  # of each side that an error is estimated from


class Fid:
    """The squared Fréchet distance, smaller is better; units are those of the features squared.

    fid: of the generated to the real images, biased upwards by the finite numbers of both.
    fid_corrected: less that bias (see ``bias_and_error``), so of images as good as real ones about
        0, of either sign; only where N >= 4 d, below which the bias is no longer of first order in
        1/N.
    fid_floor: the distance of held-out to real images, what such images reach in equal number.

    Raises ValueError for fewer than 2 images and for non-finite features.
    """

    names = ("fid", "fid_corrected")
    floor_name = "fid_floor"

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure the generated images."""
        fake = Reference(samples.fake)
        fid, bias = _measured(samples.real, fake)
        fid = fid.within(n_real=samples.real.moments.n, n_fake=fake.moments.n)
        corrected = _corrected(fid, bias, samples.real.moments, fake.moments)
        return {"fid": fid, "fid_corrected": corrected}

    def floor(self, real: Reference, held_out: Reference) -> Measurement:
        """Measure held-out images."""
        return _measured(real, held_out)[0]


def bias_and_error(
    real: Reference, fake: Reference, scales: Tensor, vectors: Tensor
) -> tuple[float, float]:
    """Mean excess of the distance of two samples over that of their distributions; standard error.

    scales, vectors: of ``coupling``. The bias is tr S_x / n + tr S_y / m from the means and C from
    the covariances (``covariance_part``). C is of first degree in the scales s, whose sum is C / 2
    too small in samples.

    The error is sqrt(max(J - V, V)): J is the infinitesimal jackknife (Efron 1982), the delta
    method with d^2's derivative with respect to the weight of each image, V the variance of the
    second-order terms. For equal distributions they are all there is, and J is 2 V (a bootstrap
    would give 3 V); in general the first-order variance adds to both. Mostly within 30 % of the
    spread for n, m >= d; below, up to two times too large.
    """
    a, b = real.moments, fake.moments
    from_covariances, second_order = covariance_part(scales, a.n, b.n)
    noise = a.cov / a.n + b.cov / b.n  # covariance of the difference of means
    missing = 0  # of the scales' sum, relative
    if from_covariances:
        missing = from_covariances / (2 * float(scales.sum()))
    bias = float(noise.trace()) + from_covariances * (1 + missing)
    second_order += 2 * float(noise.square().sum())
    of_real, of_fake = _influences(real, fake, scales, vectors)
    first_order = float(of_real.var()) / a.n + float(of_fake.var()) / b.n
    return bias, max(first_order - second_order, second_order) ** 0.5


def _measured(real: Reference, fake: Reference) -> tuple[Measurement, float]:
    """The distance with its error, and its bias."""
    scales, vectors = coupling(real.moments, fake.moments)
    bias, error = bias_and_error(real, fake, scales, vectors)
    value = float(distance(real.moments, fake.moments, scales))
    return Measurement(value, error, "standard error"), bias


def _corrected(fid: Measurement, bias: float, real: Moments, fake: Moments) -> Measurement:
    needed = 4 * len(real.mean)
    n, kind = min((fake.n, "generated"), (real.n, "real"))
    if n < needed:
        reason = f"needs N >= 4 d = {needed} images, there are {n} {kind}"
        return Measurement(None, reason=reason, context=fid.context)
    return replace(fid, value=fid.value - bias).within(bias=bias)


def _influences(
    real: Reference, fake: Reference, scales: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """n times d^2's derivative with respect to the weight of each image, up to a constant, by side.

    2 (x - mu_x) . (mu_x - mu_y) + |x - mu_x|^2 - (x - mu_x)^T T (x - mu_x) with T the optimal
    transport map from x's to y's Gaussian (Olkin & Pukelsheim 1982), and likewise for y. With
    S_x = A A^T and A^T S_y A = W diag(s^2) W^T the last term is |s^(1/2) W^T A^+ (x - mu_x)|^2, and
    for y |s^(-1/2) W^T A^T (y - mu_y)|^2: right for any rank.
    """
    root = real.moments.root
    between = real.moments.mean - fake.moments.mean
    # The transposed pseudo-inverse, as the columns are orthogonal.
    inverse = root / root.square().sum(dim=0)
    of_real = _influence(real, between, inverse @ vectors * scales.sqrt())
    of_fake = _influence(fake, -between, root @ vectors / scales.sqrt())
    return of_real, of_fake


def _influence(images: Reference, between: Tensor, transport: Tensor) -> Tensor:
    """The influences of one side, of at most ``ERROR_IMAGES`` images: T = transport transport^T."""
    x = evenly_spaced(images.features, ERROR_IMAGES).to(torch.float64) - images.moments.mean
    transported = (x @ transport).square().sum(dim=1)
    return 2 * x @ between + x.square().sum(dim=1) - transported
