"""Heun's second-order method for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from src.noise import Generators
from src.sampler.base import Denoiser, full_time, scales, steps
from src.schedule.base import NoiseSchedule


def heun(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    num_steps: int = 20,
    timesteps: Sequence[int] | None = None,
    generator: Generators = None,
) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 1, without churn) in phi = atan2(sigma, signal).

    With signal = cos(phi) and sigma = sin(phi) the ODE reads
    dx/dphi = cos(phi) * eps-hat - sin(phi) * x0-hat, the velocity of Salimans & Ho 2022: bounded
    from phi = pi/2 (noise) to 0, whereas 1 / signal_T is 20,291 for the cosine schedule. Two
    evaluations a step; the step to t = 0 takes x0-hat itself (one evaluation, first order).

    x: (B, C, H, W) noise at the first time; ``generator`` is unused, the method is deterministic.
    """
    for t, s in steps(schedule, num_steps, timesteps):
        slope, x0 = _velocity(denoise, schedule, x, t)
        if s == 0:
            x = x0
            continue
        width = _angle(schedule, s) - _angle(schedule, t)
        corrected, _ = _velocity(denoise, schedule, x + width * slope, s)
        x = x + width / 2 * (slope + corrected)
    return x


def _angle(schedule: NoiseSchedule, t: int) -> float:
    signal, sigma = scales(schedule, t)
    return math.atan2(sigma, signal)


def _velocity(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, t: int
) -> tuple[Tensor, Tensor]:
    signal, sigma = scales(schedule, t)
    x0 = denoise(x, full_time(x, t))
    return signal * (x - signal * x0) / sigma - sigma * x0, x0
