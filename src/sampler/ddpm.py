"""Ancestral sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.errors import require
from src.noise import Generators, randn
from src.sampler.base import Denoiser, full_time, steps
from src.schedule.base import NoiseSchedule

VARIANCES = ("large", "small")


def ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    num_steps: int = 1000,
    variance: str = "large",
    timesteps: Sequence[int] | None = None,
    generator: Generators = None,
) -> Tensor:
    """Ancestral sampling with q(x_s | x_t, x0-hat) (Ho et al. 2020, algorithm 2).

    Arguments:
        x: (B, C, H, W) noise at the first time.
        num_steps: of one evaluation each, also fewer than T; ``timesteps``, the times to visit,
            takes its place.
        variance: of each step, ``large`` = beta of the step (optimal for x_0 ~ N(0, 1), best at
            many steps), ``small`` = the posterior's (optimal for a single x_0, better at few).
    """
    require(variance in VARIANCES, "variance", variance, f"must be one of {', '.join(VARIANCES)}")
    for t, s in steps(schedule, num_steps, timesteps):
        x0 = denoise(x, full_time(x, t))
        x, posterior_variance = schedule.posterior(x0, x, torch.tensor([t]), torch.tensor([s]))
        if s > 0:
            spread = posterior_variance.sqrt()
            if variance == "large":
                spread = schedule.step_variance(t, s) ** 0.5
            x = x + spread * randn(x.shape, generator, x.device, x.dtype)
    return x
