"""The sigmoid schedule."""

from __future__ import annotations

import torch

from src.schedule.base import NoiseSchedule, check_betas, check_num_timesteps, scaled_to


def sigmoid(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Betas on a logistic curve over [-6, 6] (GeoDiff, Xu et al. 2022), scaled by 1000 / T."""
    check_num_timesteps(num_timesteps)
    check_betas(beta_start, beta_end)
    curve = torch.linspace(-6, 6, num_timesteps, dtype=torch.float64).sigmoid()
    betas = beta_start + (beta_end - beta_start) * curve
    return NoiseSchedule(scaled_to(num_timesteps, betas), name="sigmoid")
