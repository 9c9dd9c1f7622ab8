"""The linear schedule of Ho et al. 2020."""

from __future__ import annotations

import torch

from src.schedule.base import NoiseSchedule, check_betas, check_num_timesteps, scaled_to


def linear(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Betas evenly spaced from beta_start to beta_end (DDPM section 4).

    They are given for T = 1000 and scaled by 1000 / T.
    """
    check_num_timesteps(num_timesteps)
    check_betas(beta_start, beta_end)
    betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    return NoiseSchedule(scaled_to(num_timesteps, betas), name="linear")
