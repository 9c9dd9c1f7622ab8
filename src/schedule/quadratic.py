"""The quadratic ("scaled linear") schedule."""

from __future__ import annotations

import torch

from src.schedule.base import NoiseSchedule, check_betas, check_num_timesteps, scaled_to


def quadratic(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Square roots of beta evenly spaced (DDIM, Song et al. 2021; "scaled linear" in LDM).

    The ends are given for T = 1000, and betas are scaled by 1000 / T.
    """
    check_num_timesteps(num_timesteps)
    check_betas(beta_start, beta_end)
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return NoiseSchedule(scaled_to(num_timesteps, roots.square()), name="quadratic")
