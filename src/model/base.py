"""What a generative model is, and what some of them can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from src.distribution import DiagonalGaussian
from src.errors import require_count
from src.likelihood import Likelihood
from src.noise import Generators


class GenerativeModel(nn.Module, ABC):
    """A model with a loss.

    Images are (B, C, H, W) in [-1, 1], labels (B,) long, likelihoods in nats per image.
    """

    # Optimiser steps taken, set by the trainer; for schedules such as the beta of a VAE.
    step: int = 0

    @abstractmethod
    def loss(
        self, x: Tensor, label: Tensor | None = None, generator: Generators = None
    ) -> dict[str, Tensor]:
        """Scalars, averages over the batch: "loss" is minimised, all are logged."""


@runtime_checkable
class CanSample(Protocol):
    """Draws new images."""

    def sample(self, num: int, label: Tensor | None = None, generator: Generators = None) -> Tensor:
        """(num, C, H, W) in [-1, 1]; with one generator per image, each depends on its own only."""


@runtime_checkable
class CanReconstruct(Protocol):
    """Encodes and decodes images."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoded code of x, (B, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Effort:
    """Budget of a likelihood estimate; each model uses the part that applies to it.

    Arguments:
        importance_samples: k of the IWAE bound.
        chunk: of these, how many are held in memory at a time (per image).
        timesteps: drawn per image for the variational bound of a diffusion model, one from each of
            as many strata; None takes all T.
        flow_steps: Heun steps of the probability-flow ODE; None leaves that estimate out.
    """

    importance_samples: int = 100
    chunk: int = 50
    timesteps: int | None = 100
    flow_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            left_out = value is None and name in ("timesteps", "flow_steps")
            if not left_out:
                require_count(name, value)


@dataclass(frozen=True)
class Scores:
    """Likelihood estimates of a batch of images and what they are made of.

    Arguments:
        log_likelihood: name (``elbo``, ``iwae_100``, ``vlb_large``) -> (B,) nats of the discrete
            values.
        parts: name -> (B,) or, for terms over time, (B, n) nats.
        times: (B, n) long, the t of these terms, or None.
    """

    log_likelihood: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None


@runtime_checkable
class CanScore(Protocol):
    """Gives log-likelihoods."""

    likelihood_kind: str  # what log_likelihood returns: exact or a lower bound, and on which scale

    def log_likelihood(self, x: Tensor, generator: Generators = None) -> Tensor:
        """log p(x) of each image or a lower bound of it, (B,) nats."""


@runtime_checkable
class CanEstimate(Protocol):
    """Gives log-probabilities of discrete images, the more exact the larger the budget."""

    # What score measures: "8-bit" (bits/dim compare across families) or "bits" (binarised images).
    discrete_scale: str

    def score(self, x: Tensor, effort: Effort, generator: Generators = None) -> Scores:
        """Estimates of the log-probability of the discrete images x.

        Each is a lower bound unless its name says exact.
        """


@runtime_checkable
class HasLikelihood(Protocol):
    """Is trained on a likelihood p(x | z): its losses are on that scale."""

    likelihood: Likelihood


@runtime_checkable
class CanEncode(Protocol):
    """Has a code for every image."""

    def encode(self, x: Tensor) -> Tensor:
        """Code of x, (B, latent_dim); of a distribution over codes its mean."""


@runtime_checkable
class HasPosterior(Protocol):
    """Has a distribution over codes for every image."""

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x), mean and log_var (B, latent_dim)."""


@runtime_checkable
class DrawsTimes(Protocol):
    """Trains every image at a time of its own."""

    def draw_times(self, num: int, generator: Generators = None) -> Tensor:
        """(num,) long."""


@runtime_checkable
class CanDenoise(Protocol):
    """Has a denoising trajectory to show."""

    def trajectory(
        self, num: int, generator: Generators = None
    ) -> tuple[list[int], Tensor, Tensor]:
        """Times T ... 0 of a sampling run, states x_t and estimates x0-hat.

        States and estimates are (len(times), num, C, H, W).
        """
