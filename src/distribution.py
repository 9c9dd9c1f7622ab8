"""The diagonal Gaussian: densities, 8-bit probabilities, samples and analytic KLs, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.noise import Generators, randn

LOG_2PI = math.log(2 * math.pi)
HALF_BIN = 1 / 255  # of the 256 values on [-1, 1]


class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) over the last dimensions.

    mean, log_var: broadcastable tensors (B, ...); ``log_var`` is the log of the variance, not of
    the standard deviation.
    """

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        self.mean = mean
        self.log_var = log_var

    def sample(self, generator: Generators = None) -> Tensor:
        """Reparameterised sample mean + sigma * eps (Kingma & Welling 2014, section 2.4).

        Differentiable in mean and log_var.
        """
        eps = randn(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + (self.log_var / 2).exp() * eps

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each element, in nats: -(log 2 pi + log var + (x - mean)^2 / var) / 2."""
        return -0.5 * (LOG_2PI + self.log_var + (x - self.mean).square() * (-self.log_var).exp())

    def log_mass(self, x: Tensor) -> Tensor:
        """Log-probability of the 8-bit value of each element, in nats (DDPM section 3.3, eq. 13).

        x: in [-1, 1]; its bin is [x - 1/255, x + 1/255], and those of -1 and 1 reach to infinity.
        """
        inverse_sigma = (-self.log_var / 2).exp()
        away = (x - self.mean) * inverse_sigma
        half = HALF_BIN * inverse_sigma
        is_outer = x.abs() > 0.999
        # The Gaussian is symmetric: mirrored to the side where log_ndtr is small, no digits cancel
        # in either tail.
        away = torch.where(is_outer, away * x.sign(), away.abs())
        upper = torch.special.log_ndtr(half - away)
        lower = torch.special.log_ndtr(-half - away)
        inside = upper + torch.log(-torch.expm1(lower - upper))
        return torch.where(is_outer, upper, inside)

    def kl_to_standard(self) -> Tensor:
        """KL(N(mean, var) || N(0, 1)) of each element (Kingma & Welling 2014, appendix B).

        (mean^2 + var - 1 - log var) / 2, with the factor 1/2 and exp of the log-variance that notes
        often lose.
        """
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of each element.

        log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2 with standard deviations s.
        """
        difference = self.log_var - other.log_var
        distance = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (difference.exp() - 1 - difference + distance)
