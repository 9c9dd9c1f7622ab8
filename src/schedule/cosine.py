"""The cosine schedule of Nichol & Dhariwal 2021."""

from __future__ import annotations

import math

import torch

from src.errors import require
from src.schedule.base import MIN_BETA, NoiseSchedule, check_num_timesteps


def cosine(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> NoiseSchedule:
    """Cosine schedule: alpha_bar(t) = f(t) / f(0) (Nichol & Dhariwal 2021, eq. 17).

    f(t) = cos^2((t/T + offset) / (1 + offset) * pi/2). beta_t = 1 - alpha_bar(t) / alpha_bar(t - 1)
    is clipped at ``max_beta``, as in the paper: alpha_bar(T) would be 0.
    """
    check_num_timesteps(num_timesteps)
    require(0 <= offset <= 1, "offset", offset, "must be between 0 and 1")
    inside = MIN_BETA <= max_beta < 1
    require(inside, "max_beta", max_beta, f"must be inside (0, 1), at least {MIN_BETA}")
    quarter = math.pi / 2 / (1 + offset)
    t = torch.arange(num_timesteps + 1, dtype=torch.float64)
    angle = (t / num_timesteps + offset) * quarter
    rest = (num_timesteps - t) / num_timesteps * quarter
    # 1 - cos^2(b) / cos^2(a) = sin(b - a) sin(b + a) / cos^2(a), with cos(a) = sin(pi/2 - a):
    # no digits cancel
    total = torch.minimum(angle[1:] + angle[:-1], rest[1:] + rest[:-1])
    betas = math.sin(quarter / num_timesteps) * total.sin() / rest[:-1].sin().square()
    return NoiseSchedule(betas.clamp(max=max_beta), name="cosine")
