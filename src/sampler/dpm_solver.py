"""DPM-Solver++(2M)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from src.noise import Generators
from src.sampler.base import Denoiser, full_time, scales, steps
from src.schedule.base import NoiseSchedule


def dpm_solver(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    num_steps: int = 20,
    timesteps: Sequence[int] | None = None,
    generator: Generators = None,
) -> Tensor:
    """DPM-Solver++(2M), multistep, data prediction (Lu et al. 2022, algorithm 2).

    With lambda = log(signal / sigma) and h its increase over the step,
    x_s = sigma_s / sigma_t * x_t - signal_s * (exp(-h) - 1) * D, where D extrapolates x0-hat from
    this and the previous step. The first step has no previous one and the step to t = 0 has
    h = infinity: both are first order. One evaluation a step.

    x: (B, C, H, W) noise at the first time; ``generator`` is unused, the method is deterministic.
    """
    previous_x0 = None
    previous_h = 0.0
    for t, s in steps(schedule, num_steps, timesteps):
        signal_t, sigma_t = scales(schedule, t)
        signal_s, sigma_s = scales(schedule, s)
        x0 = denoise(x, full_time(x, t))
        shrink = signal_t * sigma_s / (signal_s * sigma_t)  # exp(-h), 0 for s = 0
        h = -math.log(shrink) if s > 0 else math.inf
        estimate = x0
        if previous_x0 is not None and s > 0:
            weight = h / (2 * previous_h)  # 1 / (2 r)
            estimate = (1 + weight) * x0 - weight * previous_x0
        x = sigma_s / sigma_t * x - signal_s * (shrink - 1) * estimate
        previous_x0 = x0
        previous_h = h
    return x
