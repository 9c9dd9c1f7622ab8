"""What all samplers share: the denoiser they call and the times they visit.

A sampler is a function (denoise, schedule, x) -> x. It needs only the estimate of x_0 and alpha_bar
at two times, so every prediction type and every schedule works with each of them. Coefficients are
Python floats (float64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from src.errors import require
from src.schedule.base import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> estimate of x_0


def steps(
    schedule: NoiseSchedule, num_steps: int, timesteps: Sequence[int] | None
) -> Iterator[tuple[int, int]]:
    """Pairs (t, s) with t > s that a sampler visits: ``timesteps``, or the schedule's own grid.

    Raises ConfigError unless T >= t_0 > t_1 > ... >= 0 with at least two times.
    """
    times = schedule.timesteps(num_steps) if timesteps is None else list(timesteps)
    falling = len(times) > 1 and all(t > s for t, s in pairwise(times))
    inside = falling and times[0] <= schedule.num_timesteps and times[-1] >= 0
    allowed = f"must fall strictly from at most {schedule.num_timesteps} to at least 0"
    require(inside, "timesteps", times, allowed)
    return pairwise(times)


def scales(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """signal_t and sigma_t as Python floats."""
    return float(schedule.alpha_bar[t].sqrt()), float(schedule.sigma_squared[t].sqrt())


def full_time(x: Tensor, t: int) -> Tensor:
    """t for every image of the batch, (B,) long on x's device."""
    return torch.full((len(x),), t, device=x.device, dtype=torch.long)
