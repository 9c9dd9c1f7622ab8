"""DDIM sampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from src.errors import require
from src.noise import Generators, randn
from src.sampler.base import Denoiser, full_time, scales, steps
from src.schedule.base import NoiseSchedule


def ddim(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    num_steps: int = 50,
    eta: float = 0.0,
    timesteps: Sequence[int] | None = None,
    generator: Generators = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    The noise direction is derived from x0-hat, so a clipped x0-hat stays consistent with it.

    Arguments:
        x: (B, C, H, W) noise at the first time.
        num_steps: of one evaluation each; ``timesteps``, the times to visit, takes its place.
        eta: how much of the noise is new: 0 is deterministic, 1 the DDPM posterior.
    """
    inside = isinstance(eta, int | float) and 0 <= eta <= 1
    require(inside, "eta", eta, "must be between 0 (deterministic) and 1 (DDPM posterior)")
    for t, s in steps(schedule, num_steps, timesteps):
        signal_t, sigma_t = scales(schedule, t)
        signal_s, sigma_s = scales(schedule, s)
        x0 = denoise(x, full_time(x, t))
        eps = (x - signal_t * x0) / sigma_t
        spread = eta * sigma_s / sigma_t * schedule.step_variance(t, s) ** 0.5
        x = signal_s * x0 + (sigma_s**2 - spread**2) ** 0.5 * eps
        if spread > 0:
            x = x + spread * randn(x.shape, generator, x.device, x.dtype)
    return x
