"""How the squared error of the output is weighted over t.

An error of the output is an error of x0 divided by c_out, so weights that are defined on the
x0-error are multiplied by c_out squared: eps-MSE = SNR * x0-MSE and v-MSE = (SNR + 1) * x0-MSE.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from src.errors import require


class Weighting(Protocol):
    """Weight of the squared output error at each image's t."""

    def __call__(self, signal: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        """signal, sigma, c_out: (B, 1, 1, 1) -> weight, broadcastable to (B, 1, 1, 1)."""


class Uniform(Weighting):
    """Weight 1 on whatever the network predicts: L_simple for eps (Ho et al. 2020, eq. 14)."""

    def __call__(self, signal: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        """1 for every t."""
        return torch.ones_like(signal)


class MinSNR(Weighting):
    """Weight min(SNR, gamma) on the x0-error (Hang et al. 2023, Min-SNR, eq. 8)."""

    def __init__(self, gamma: float = 5.0) -> None:
        require(gamma > 0, "gamma", gamma, "must be > 0")
        self.gamma = gamma

    def __call__(self, signal: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        """min(SNR, gamma) * c_out^2, that is min(SNR, gamma) / SNR for eps, / (SNR + 1) for v."""
        return (signal / sigma).square().clamp(max=self.gamma) * c_out.square()
