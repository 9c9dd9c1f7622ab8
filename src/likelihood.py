"""Likelihoods p(x | z) of an image given the decoder's output.

Each gives a log-probability in nats per image, and the mean image. The decoder gives one number per
pixel and channel; a scale, where there is one, belongs to the likelihood.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.distribution import DiagonalGaussian
from src.errors import require, require_count


class Likelihood(nn.Module, ABC):
    """p(x | output) for images x (B, C, H, W) in [-1, 1]; output: (B, C, H, W), unbounded."""

    # What log_prob measures: density on [-1, 1], probability of 8-bit values, probability of bits.
    scale: str
    # What log_mass measures: the probability of "8-bit" values or of "bits".
    discrete_scale: str = "8-bit"

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of each image, summed over its pixels: (B,) nats."""

    def log_mass(self, output: Tensor, x: Tensor) -> Tensor:
        """Log-probability of the discrete values of x, summed over pixels: (B,) nats, at most 0."""
        return self.log_prob(output, x)

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Centre of p(x | output), (B, C, H, W) clipped to [-1, 1]: reconstructions and samples."""


class Bernoulli(Likelihood):
    """Bernoulli likelihood of pixels read as probabilities (x + 1) / 2; the output is the logit.

    A probability only on binarised images (``dataset.binarize``); on grey ones it is a
    cross-entropy with a positive floor, not a log-likelihood.
    """

    scale = "probability of bits"
    discrete_scale = "bits"

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p) with x in [0, 1], summed over pixels."""
        error = F.binary_cross_entropy_with_logits(output, (x + 1) / 2, reduction="none")
        return -error.flatten(1).sum(1)

    def log_mass(self, output: Tensor, x: Tensor) -> Tensor:
        """``log_prob``; raises ValueError where x is not binarised, as that is no probability."""
        if not (x.abs() == 1).all():
            way_out = "train with dataset.binarize=dynamic or static"
            raise ValueError(f"Bernoulli is a likelihood of bits only, {way_out}")
        return self.log_prob(output, x)

    def mean(self, output: Tensor) -> Tensor:
        """2 p - 1."""
        return 2 * output.sigmoid() - 1


class Gaussian(Likelihood):
    """N(x; output, sigma^2) with one sigma for all pixels: fixed, or learned (Rybkin et al. 2021).

    sigma: standard deviation on [-1, 1]; null learns it, above 1/1000. With fixed sigma the
    log-likelihood is -||x - output||^2 / (2 sigma^2) + const, i.e. the squared error.
    """

    scale = "density on [-1, 1]"

    def __init__(self, sigma: float | None = None) -> None:
        super().__init__()
        require(sigma is None or sigma > 0, "sigma", sigma, "must be > 0, or null to learn it")
        log_sigma = torch.tensor(0.0 if sigma is None else math.log(sigma))
        self.log_sigma = nn.Parameter(log_sigma, requires_grad=sigma is None)
        # Of a learned sigma: an eighth of a grey level.
        self.floor = math.log(1e-3) if sigma is None else -math.inf

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Log density, summed over pixels. A learned sigma stays above 1/1000."""
        return self._around(output).log_prob(x).flatten(1).sum(1)

    def log_mass(self, output: Tensor, x: Tensor) -> Tensor:
        """The density integrated over the bins of the 8-bit values: exact, no dequantisation."""
        return self._around(output).log_mass(x).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The output, clipped to the range of images."""
        return output.clamp(-1, 1)

    def _around(self, output: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(output, 2 * self.log_sigma.clamp(min=self.floor))


class Logistic(Likelihood):
    """Discretised logistic likelihood of 8-bit values (Kingma et al. 2016, eq. 11-12).

    Each of the 256 values owns a bin of width 2/255 around it on [-1, 1]; the outer bins reach to
    infinity. Its log-probability divided by -(D ln 2) is bits/dim, without any dequantisation. One
    scale per channel is learned; its logarithm is kept above -7.
    """

    scale = "probability of 8-bit values"

    def __init__(self, channels: int) -> None:
        super().__init__()
        require_count("channels", channels)
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), -2.0))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log(cdf(x + 1/255) - cdf(x - 1/255)), summed over pixels, in logarithms throughout."""
        channels = len(self.log_scale)
        found = f"the images have {x.shape[1]} channels"
        require(x.shape[1] == channels, "likelihood.channels", channels, found)
        inverse_scale = (-self.log_scale.clamp(min=-7.0)).exp()
        upper = (x - output + 1 / 255) * inverse_scale
        lower = (x - output - 1 / 255) * inverse_scale
        # log(cdf(u) - cdf(l)) = log cdf(u) + log(1 - cdf(l)) + log(1 - exp(l - u)): no difference
        # of near-equal numbers
        width = 2 / 255 * inverse_scale
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        log_prob = torch.where(x > 0.999, F.logsigmoid(-lower), inside)
        log_prob = torch.where(x < -0.999, F.logsigmoid(upper), log_prob)
        return log_prob.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The output, clipped to the range of images."""
        return output.clamp(-1, 1)
