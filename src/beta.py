"""The KL term's penalty over training: its weight beta, or the capacity that it is held to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from src.errors import require


class Beta(Protocol):
    """Penalty that the KL term adds to the loss at an optimiser step."""

    def __call__(self, kl: Tensor, step: int | None) -> Tensor:
        """kl: (B,) nats -> penalty (B,). step: optimiser steps taken; None: end of the schedule.

        Validation uses the end, so that the losses of different steps can be compared.
        """


class Constant(Beta):
    """beta * KL: 1 is the ELBO, more is the beta-VAE (Higgins et al. 2017, eq. 4)."""

    def __init__(self, value: float = 1.0) -> None:
        require(value >= 0, "value", value, "must be >= 0")
        self.value = value

    def __call__(self, kl: Tensor, step: int | None) -> Tensor:
        """The same weight at every step."""
        return self.value * kl


class Linear(Beta):
    """KL annealing (Bowman et al. 2016): beta rises linearly from ``start`` to ``value``.

    It takes ``warmup_steps`` optimiser steps.
    """

    def __init__(self, value: float = 1.0, warmup_steps: int = 1000, start: float = 0.0) -> None:
        require(value >= 0, "value", value, "must be >= 0")
        require(start >= 0, "start", start, "must be >= 0")
        require(warmup_steps >= 1, "warmup_steps", warmup_steps, "must be >= 1")
        self.value = value
        self.warmup_steps = warmup_steps
        self.start = start

    def __call__(self, kl: Tensor, step: int | None) -> Tensor:
        """start + (value - start) * min(1, step / warmup_steps)."""
        progress = 1.0 if step is None else min(1.0, step / self.warmup_steps)
        return (self.start + (self.value - self.start) * progress) * kl


class Cyclical(Beta):
    """beta rises from 0 to ``value`` again and again (Fu et al. 2019, cyclical annealing).

    period: steps of one cycle; ratio: the fraction of a cycle in which beta rises; for the rest it
    stays at ``value``.
    """

    def __init__(self, value: float = 1.0, period: int = 1000, ratio: float = 0.5) -> None:
        require(value >= 0, "value", value, "must be >= 0")
        require(period >= 1, "period", period, "must be >= 1")
        require(0 < ratio <= 1, "ratio", ratio, "must be inside (0, 1]")
        self.value = value
        self.period = period
        self.ratio = ratio

    def __call__(self, kl: Tensor, step: int | None) -> Tensor:
        """value * min(1, position in the cycle / ratio)."""
        progress = 1.0
        if step is not None:
            progress = min(1.0, (step % self.period) / self.period / self.ratio)
        return self.value * progress * kl


class Capacity(Beta):
    """gamma * |KL - C| with a rising capacity C (Burgess et al. 2018, eq. 8).

    C rises linearly from 0 to ``max_capacity`` nats over ``steps`` optimiser steps.
    """

    def __init__(
        self, value: float = 100.0, max_capacity: float = 25.0, steps: int = 10000
    ) -> None:
        require(value >= 0, "value", value, "must be >= 0")
        require(max_capacity >= 0, "max_capacity", max_capacity, "must be >= 0 nats")
        require(steps >= 1, "steps", steps, "must be >= 1")
        self.value = value
        self.max_capacity = max_capacity
        self.steps = steps

    def __call__(self, kl: Tensor, step: int | None) -> Tensor:
        """``value`` is gamma; the absolute value is of the batch mean, both as in the paper."""
        progress = 1.0 if step is None else min(1.0, step / self.steps)
        return self.value * (kl.mean() - progress * self.max_capacity).abs().expand_as(kl)
