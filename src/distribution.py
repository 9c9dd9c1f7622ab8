"""The diagonal Gaussian: densities, reparameterised samples and analytic KL divergences, in nats."""

from __future__ import annotations

import math

from torch import Tensor

from src.noise import Generators, randn

LOG_2PI = math.log(2 * math.pi)


class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) over the last dimensions; ``log_var`` is the log of the variance, not of sigma.

    mean, log_var: broadcastable tensors (B, ...).
    """

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        self.mean, self.log_var = mean, log_var

    def sample(self, generator: Generators = None) -> Tensor:
        """Reparameterised sample mean + sigma * eps (Kingma & Welling 2014, section 2.4), differentiable in both."""
        eps = randn(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + (self.log_var / 2).exp() * eps

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each element of x, in nats: -(log 2 pi + log var + (x - mean)^2 / var) / 2."""
        return -0.5 * (LOG_2PI + self.log_var + (x - self.mean).square() * (-self.log_var).exp())

    def kl_to_standard(self) -> Tensor:
        """KL(N(mean, var) || N(0, 1)) of each element (Kingma & Welling 2014, appendix B).

        (mean^2 + var - 1 - log var) / 2, with the factor 1/2 and exp of the log-variance that notes often lose.
        """
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of each element: log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
        difference = self.log_var - other.log_var
        distance = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (difference.exp() - 1 - difference + distance)
