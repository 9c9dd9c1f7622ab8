"""What the network of a diffusion model predicts: the noise, the clean image or the velocity.

Every choice is an estimate ``x0 = c_skip * x_t + c_out * output``; nothing else in the code knows
the difference.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Prediction(Protocol):
    """Meaning of the network's output. Images are (B, C, H, W), signal and sigma (B, 1, 1, 1)."""

    def target(self, x0: Tensor, eps: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to be."""

    def coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out of x0 = c_skip * x_t + c_out * output."""

    def to_x0(self, output: Tensor, x_t: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Estimate of x_0 from the output."""
        c_skip, c_out = self.coefficients(signal, sigma)
        return c_skip * x_t + c_out * output


class Epsilon(Prediction):
    """The noise eps (Ho et al. 2020, eq. 11-12): x0 = (x_t - sigma * eps) / signal."""

    def target(self, x0: Tensor, eps: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """eps itself."""
        return eps

    def coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """1 / signal and -sigma / signal; large where signal is small, so clip x0 there."""
        return 1 / signal, -sigma / signal


class Sample(Prediction):
    """The clean image x0 (Ho et al. 2020, section 3.2)."""

    def target(self, x0: Tensor, eps: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """x0 itself."""
        return x0

    def coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return signal.new_zeros(()), signal.new_ones(())


class Velocity(Prediction):
    """v = signal * eps - sigma * x0 (Salimans & Ho 2022, appendix D): bounded at every t."""

    def target(self, x0: Tensor, eps: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """v of the pair (x0, eps)."""
        return signal * eps - sigma * x0

    def coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and -sigma."""
        return signal, -sigma
