"""The forward process of diffusion, in one table.

Notation (used everywhere): ``x0`` clean image, ``x_t`` noisy image, ``eps`` noise, ``t`` and
``s < t`` integer times with 0 = clean, ``alpha_bar`` = prod(1 - beta),
``signal = sqrt(alpha_bar)``, ``sigma = sqrt(1 - alpha_bar)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.errors import ConfigError, require

MAX_TIMESTEPS = 100_000
MIN_BETA = 1e-10  # 1 - beta differs from 1 also where betas are scaled down to 100,000 steps


class NoiseSchedule(nn.Module):
    """Variance-preserving forward process x_t = signal_t * x_0 + sigma_t * eps (DDPM eq. 4).

    t = 0..T, and t = 0 is clean. betas: (T,) float64, the variances beta_1 .. beta_T of the steps.
    name: what an error calls the schedule. Raises ConfigError when a beta is not finite or outside
    (0, 1), or alpha_bar does not strictly decrease.

    The tables are plain float64 attributes on the CPU, not buffers, so that no cast or ``.to()``
    can spoil them. They are built from log(1 - beta), because 1 - cumprod loses digits where
    alpha_bar is close to 1.
    """

    alpha_bar: Tensor  # (T + 1,) float64, alpha_bar[0] == 1: no special case for t - 1 = 0
    num_timesteps: int  # T

    def __init__(self, betas: Tensor, name: str) -> None:
        super().__init__()
        betas = betas.double()
        inside = torch.isfinite(betas) & (betas > 0) & (betas < 1)
        if not inside.all():
            worst = int((~inside).nonzero()[0])
            beta = f"beta_{worst + 1}={betas[worst]:g}"
            raise ConfigError(f"schedule {name}: {beta} is not inside (0, 1)")
        self.num_timesteps = len(betas)
        self.betas = torch.cat([betas.new_zeros(1), betas])
        self.log_alpha_bar = torch.log1p(-self.betas).cumsum(0)
        self.alpha_bar = self.log_alpha_bar.exp()
        self.sigma_squared = 0 - torch.expm1(self.log_alpha_bar)
        self._scales: dict[torch.device, Tensor] = {}
        vanishes = self.alpha_bar[-1] <= 0
        if vanishes or not (self.alpha_bar.diff() < 0).all():
            advice = "lower beta_start, beta_end or max_beta" if vanishes else "take larger betas"
            problem = "alpha_bar does not strictly decrease to a positive value"
            raise ConfigError(f"schedule {name}: {problem}; {advice}")

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal_t and sigma_t for t (B,) long, each (B, 1, 1, 1) float32 on t's device."""
        if t.device not in self._scales:
            table = torch.stack([self.alpha_bar.sqrt(), self.sigma_squared.sqrt()])
            self._scales[t.device] = table.float().to(t.device)
        signal, sigma = self._scales[t.device][:, t]
        return signal.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Sample of q(x_t | x_0) with the noise ``eps`` (DDPM eq. 4).

        x0, eps: (B, C, H, W); t: (B,) long.
        """
        signal, sigma = self.scales(t)
        return signal * x0 + sigma * eps

    def posterior(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x_0) (DDPM eq. 6-7); s = t - 1 unless given.

        x0, x_t: (B, C, H, W); t, s: (B,) or (1,) long, s < t. The mean has the images' shape, the
        variance is (B, 1, 1, 1) and exactly 0 for s = 0. Coefficients are computed in float64 and
        cast last.
        """
        t = t.cpu()
        s = t - 1 if s is None else s.cpu()
        step = self.log_alpha_bar[t] - self.log_alpha_bar[s]
        beta = -torch.expm1(step)  # of the one step from s to t
        sigma_squared_t = self.sigma_squared[t]
        sigma_squared_s = self.sigma_squared[s]
        of_x0 = (self.log_alpha_bar[s] / 2).exp() * beta / sigma_squared_t
        of_x_t = (step / 2).exp() * sigma_squared_s / sigma_squared_t
        variance = beta * sigma_squared_s / sigma_squared_t
        coefficients = torch.stack([of_x0, of_x_t, variance]).to(x_t)
        of_x0, of_x_t, variance = coefficients.view(3, -1, 1, 1, 1)
        return of_x0 * x0 + of_x_t * x_t, variance

    def step_variance(self, t: int, s: int) -> float:
        """Variance beta of the forward step from s to t: 1 - alpha_bar_t / alpha_bar_s."""
        return -float(torch.expm1(self.log_alpha_bar[t] - self.log_alpha_bar[s]))

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio log(alpha_bar_t / (1 - alpha_bar_t)), t (B,) -> float64 (B,).

        +inf at t = 0.
        """
        t = t.cpu()
        return self.log_alpha_bar[t] - self.sigma_squared[t].log()

    def timesteps(self, num_steps: int) -> list[int]:
        """Times T, ..., 0 that a sampler visits: num_steps + 1, strictly decreasing, even in t."""
        total = self.num_timesteps
        fits = isinstance(num_steps, int) and 1 <= num_steps <= total
        require(fits, "num_steps", num_steps, f"must be between 1 and num_timesteps={total}")
        return [(2 * total * i + num_steps) // (2 * num_steps) for i in range(num_steps, -1, -1)]


def check_num_timesteps(num_timesteps: int) -> None:
    """Raise ConfigError unless T is an integer from 1 to 100,000."""
    sensible = isinstance(num_timesteps, int) and 1 <= num_timesteps <= MAX_TIMESTEPS
    allowed = f"must be an integer from 1 to {MAX_TIMESTEPS}"
    require(sensible, "num_timesteps", num_timesteps, allowed)


def check_betas(beta_start: float, beta_end: float) -> None:
    """Raise ConfigError unless MIN_BETA <= beta_start < beta_end < 1."""
    inside = MIN_BETA <= beta_start < 1
    require(inside, "beta_start", beta_start, f"must be inside (0, 1), at least {MIN_BETA}")
    rises = beta_start < beta_end < 1
    require(rises, "beta_end", beta_end, f"must be between beta_start={beta_start} and 1")


def scaled_to(num_timesteps: int, betas: Tensor, max_beta: float = 0.999) -> Tensor:
    """Betas that are meant for T = 1000, for another T: times 1000 / T (Nichol & Dhariwal 2021).

    At most ``max_beta``. Without the factor a shorter chain would end far from pure noise
    (alpha_bar_T = 0.13 at T = 200).
    """
    return (betas * (1000 / num_timesteps)).clamp(max=max_beta)
