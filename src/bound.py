"""The variational bound of a diffusion model, in nats per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from src.distribution import DiagonalGaussian
from src.errors import require
from src.noise import Generators, randint, randn
from src.schedule.base import NoiseSchedule


@dataclass(frozen=True)
class Bound:
    """-log p(x_0) <= L_T + sum over t = 2..T of L_{t-1} + L_0 (Ho et al. 2020, eq. 5), all in nats per image.

    prior: L_T, (B,). times: (B, n) long, the t of ``terms``, one from each stratum. strata: (n,), how many t each of
    them stands for. terms: variance -> L_{t-1} at these t, (B, n). reconstruction: variance -> L_0, (B,).
    """

    prior: Tensor
    times: Tensor
    strata: Tensor
    terms: dict[str, Tensor]
    reconstruction: dict[str, Tensor]

    def log_likelihood(self, variance: str) -> Tensor:
        """Lower bound of log p(x_0), (B,): an unbiased estimate of it where strata hold more than one t."""
        return -(
            self.prior + (self.strata * self.terms[variance]).sum(1) + self.reconstruction[variance]
        )


def fixed_variances(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The two fixed choices for the variance of p(x_{t-1} | x_t) (Ho et al. 2020, section 3.2), (T + 1,) float64.

    large: beta_t, also at t = 1. small: that of q(x_{t-1} | x_t, x_0); it is 0 at t = 1, where its value at t = 2
    stands in (Nichol & Dhariwal 2021). The entry at t = 1 belongs to the decoder p(x_0 | x_1).
    """
    small = _posterior(schedule)[1]
    small[1] = small[2] if schedule.num_timesteps > 1 else schedule.betas[1]
    return {"large": schedule.betas, "small": small}


def variational_bound(
    denoise: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    *,
    num_timesteps: int | None = None,
    variances: Mapping[str, Tensor] | None = None,
    discrete: bool = True,
    generator: Generators = None,
) -> Bound:
    """The variational bound of images x0 (B, C, H, W), with one draw of the noise for each t and image.

    denoise: (x_t, t (B,)) -> estimate of x_0. num_timesteps=n cuts t = 2..T into n strata and draws one t of each,
    uniformly and for each image by itself: an unbiased estimate; None, or n >= T - 1, takes all. L_T and L_0 are always
    there. variances: name -> (T + 1,) float64, ``fixed_variances`` unless given; all are served by the same outputs.
    discrete: L_0 with the probability of the 8-bit values of x0 (eq. 13); otherwise with the density.
    """
    require(
        num_timesteps is None or num_timesteps >= 1,
        "num_timesteps",
        num_timesteps,
        "must be an integer >= 1",
    )
    variances = fixed_variances(schedule) if variances is None else variances
    edges = _strata(schedule, num_timesteps)

    def estimate(t: Tensor) -> Tensor:
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        return denoise(schedule.add_noise(x0, eps, t), t)

    first = estimate(torch.ones(len(x0), device=x0.device, dtype=torch.long))
    times, errors = [x0.new_zeros(len(x0), 0, dtype=torch.long)], [x0.new_zeros(len(x0), 0)]
    for low, high in pairwise(edges):
        t = randint(low, high, len(x0), generator, x0.device)
        times.append(t.unsqueeze(1))
        errors.append((estimate(t) - x0).square().flatten(1).sum(1, keepdim=True))
    t, error = torch.cat(times, 1), torch.cat(errors, 1)
    return Bound(
        prior=_prior(schedule, x0),
        times=t,
        strata=torch.tensor(edges, device=x0.device).diff(),
        terms={name: _kl(schedule, v, t, error, x0[0].numel()) for name, v in variances.items()},
        reconstruction={
            name: _negative_log_prob(x0, first, v[1], discrete) for name, v in variances.items()
        },
    )


def _strata(schedule: NoiseSchedule, num: int | None) -> list[int]:
    """Edges of ``num`` intervals of t = 2..T over which log sigma grows almost equally: (first, ..., T + 1).

    For data N(0, I) the L_{t-1} are these increments of log sigma, so all strata have the same share. Strata of equal
    length would hold their largest terms, at low noise, together in one.
    """
    log_sigma, end = schedule.sigma_squared.log() / 2, schedule.num_timesteps + 1
    between = (log_sigma[1:] + log_sigma[:-1]) / 2
    num, edges = min(num or end, end - 2), [2]
    for left in range(num, 1, -1):
        first = edges[-1]
        aim = log_sigma[first - 1] + (log_sigma[-1] - log_sigma[first - 1]) / left
        last = int(torch.searchsorted(between, aim))  # the t whose log sigma is nearest to the aim
        edges.append(min(max(last, first) + 1, end - left + 1))
    return [*edges, end][: num + 1]


def _posterior(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), and its variance, for t = 0..T; both 0 at t = 0."""
    t = torch.arange(1, schedule.num_timesteps + 1)
    ones = torch.ones(len(t), 1, 1, 1, dtype=torch.float64)
    of_x0, variance = schedule.posterior(ones, torch.zeros_like(ones), t)
    return F.pad(of_x0.flatten(), (1, 0)), F.pad(variance.flatten(), (1, 0))


def _prior(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)): (alpha_bar (x_0^2 - 1) - log(1 - alpha_bar)) / 2 for each pixel."""
    alpha_bar, log_variance = float(schedule.alpha_bar[-1]), float(schedule.sigma_squared[-1].log())
    return (alpha_bar * (x0.square() - 1) - log_variance).flatten(1).sum(1) / 2


def _kl(
    schedule: NoiseSchedule, variance: Tensor, t: Tensor, error: Tensor, num_pixels: int
) -> Tensor:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(posterior mean of x0-hat, variance)) at t (B, n), (B, n) nats.

    The two means differ by the posterior's coefficient of x_0 times the error of x0-hat; ``error`` is its square,
    summed over the pixels. Coefficients are computed in float64 and cast last.
    """
    of_x0, posterior_variance = _posterior(schedule)
    ratio = posterior_variance / variance
    of_error, constant = of_x0.square() / variance / 2, (ratio - 1 - ratio.log()) / 2
    return of_error[t.cpu()].to(error) * error + constant[t.cpu()].to(error) * num_pixels


def _negative_log_prob(x0: Tensor, x0_hat: Tensor, variance: Tensor, discrete: bool) -> Tensor:
    """L_0 = -log p(x_0 | x_1) of N(x0-hat, variance), (B,) nats: the posterior mean at t = 1 is x0-hat itself."""
    p = DiagonalGaussian(x0_hat, variance.log().to(x0_hat))
    return -(p.log_mass(x0) if discrete else p.log_prob(x0)).flatten(1).sum(1)
