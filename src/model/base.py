"""What a generative model is, and what some of them can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from src.noise import Generators


class GenerativeModel(nn.Module, ABC):
    """A model with a loss. Images are (B, C, H, W) in [-1, 1], labels (B,) long, likelihoods nats per image."""

    step: int = 0  # optimiser steps taken, set by the trainer; for schedules such as the beta of a VAE

    @abstractmethod
    def loss(self, x: Tensor, label: Tensor | None = None, generator: Generators = None) -> dict[str, Tensor]:
        """Scalars, averages over the batch: "loss" is minimised, all are logged."""


@runtime_checkable
class CanSample(Protocol):
    """Draws new images."""

    def sample(self, num: int, label: Tensor | None = None, generator: Generators = None) -> Tensor:
        """(num, C, H, W) in [-1, 1]; with one generator per image, image i depends on its own alone."""


@runtime_checkable
class CanReconstruct(Protocol):
    """Encodes and decodes images."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoded code of x, (B, C, H, W) in [-1, 1]."""


@runtime_checkable
class CanScore(Protocol):
    """Gives log-likelihoods."""

    likelihood_kind: str  # what log_likelihood returns: exact or a lower bound, and on which scale

    def log_likelihood(self, x: Tensor, generator: Generators = None) -> Tensor:
        """log p(x) of each image or a lower bound of it, (B,) nats."""


@runtime_checkable
class CanDenoise(Protocol):
    """Has a denoising trajectory to show."""

    def trajectory(self, num: int, generator: Generators = None) -> tuple[list[int], Tensor, Tensor]:
        """Times T ... 0 of a sampling run, states x_t and estimates x0-hat, each (len(times), num, C, H, W)."""
