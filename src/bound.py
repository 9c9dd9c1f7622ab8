"""The variational bound of a diffusion model, in nats per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from src.distribution import DiagonalGaussian
from src.errors import require_count
from src.noise import Generators, randint, randn
from src.schedule.base import NoiseSchedule


@dataclass(frozen=True)
class Bound:
    """-log p(x_0) <= L_T + sum over t = 2..T of L_{t-1} + L_0, in nats (Ho et al. 2020, eq. 5).

    Arguments:
        prior: L_T, (B,).
        times: (B, n) long, the t of ``terms``, one from each stratum.
        strata: (n,), how many t each of them stands for.
        terms: variance -> L_{t-1} at these t, (B, n).
        reconstruction: variance -> L_0, (B,).
    """

    prior: Tensor
    times: Tensor
    strata: Tensor
    terms: dict[str, Tensor]
    reconstruction: dict[str, Tensor]

    def log_likelihood(self, variance: str) -> Tensor:
        """Lower bound of log p(x_0), (B,): an unbiased estimate where strata hold several t."""
        transitions = (self.strata * self.terms[variance]).sum(1)
        return -(self.prior + transitions + self.reconstruction[variance])


def fixed_variances(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The two fixed variances of p(x_{t-1} | x_t) (Ho et al. 2020, section 3.2), (T + 1,) float64.

    large: beta_t, also at t = 1. small: that of q(x_{t-1} | x_t, x_0); it is 0 at t = 1, where its
    value at t = 2 stands in (Nichol & Dhariwal 2021). The entry at t = 1 belongs to the decoder
    p(x_0 | x_1).
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
    """The variational bound of images x0 (B, C, H, W), one draw of the noise for each t and image.

    Arguments:
        denoise: (x_t, t (B,)) -> estimate of x_0.
        num_timesteps: n cuts t = 2..T into n strata and draws one t of each, uniformly and for each
            image by itself: an unbiased estimate. None, or n >= T - 1, takes all t. L_T and L_0 are
            always computed.
        variances: name -> (T + 1,) float64, ``fixed_variances`` unless given; all of them are
            evaluated on the same outputs.
        discrete: L_0 by the probability of the 8-bit values of x0 (eq. 13), else by the density.
    """
    if num_timesteps is not None:
        require_count("num_timesteps", num_timesteps)
    if variances is None:
        variances = fixed_variances(schedule)
    estimate = partial(_estimate, denoise, schedule, x0, generator)
    edges = _strata(schedule, num_timesteps)
    first = estimate(torch.ones(len(x0), device=x0.device, dtype=torch.long))
    t, error = _errors(estimate, x0, edges, generator)
    terms, reconstruction = {}, {}
    for name, variance in variances.items():
        terms[name] = _kl(schedule, variance, t, error, x0[0].numel())
        reconstruction[name] = _negative_log_prob(x0, first, variance[1], discrete)
    strata = torch.tensor(edges, device=x0.device).diff()
    return Bound(_prior(schedule, x0), t, strata, terms, reconstruction)


def _estimate(
    denoise: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    generator: Generators,
    t: Tensor,
) -> Tensor:
    """Estimate of x_0 from x_t with fresh noise, t (B,)."""
    eps = randn(x0.shape, generator, x0.device, x0.dtype)
    return denoise(schedule.add_noise(x0, eps, t), t)


def _errors(
    estimate: Callable[[Tensor], Tensor], x0: Tensor, edges: list[int], generator: Generators
) -> tuple[Tensor, Tensor]:
    """One t of each stratum, and |x0-hat - x0|^2 summed over the pixels at it, both (B, n)."""
    times = [x0.new_zeros(len(x0), 0, dtype=torch.long)]
    errors = [x0.new_zeros(len(x0), 0)]
    for low, high in pairwise(edges):
        t = randint(low, high, len(x0), generator, x0.device)
        times.append(t.unsqueeze(1))
        errors.append((estimate(t) - x0).square().flatten(1).sum(1, keepdim=True))
    return torch.cat(times, 1), torch.cat(errors, 1)


def _strata(schedule: NoiseSchedule, num: int | None) -> list[int]:
    """Edges (2, ..., T + 1) of ``num`` intervals of t = 2..T of about equal growth of log sigma.

    None, or num >= T - 1: one interval for each t; none at all, edges (2,), where T = 1.

    For data N(0, I) the L_{t-1} are these increments of log sigma, so all strata contribute alike.
    Strata of equal length would hold their largest terms, at low noise, together in one.
    """
    T = schedule.num_timesteps
    if num is None or num >= T - 1:
        return list(range(2, T + 2))
    log_sigma = schedule.sigma_squared.log() / 2
    between = (log_sigma[1:] + log_sigma[:-1]) / 2
    edges = [2]
    for left in range(num, 1, -1):
        first = edges[-1]
        aim = log_sigma[first - 1] + (log_sigma[-1] - log_sigma[first - 1]) / left
        last = int(torch.searchsorted(between, aim))  # the t whose log sigma is nearest to the aim
        most = T + 2 - left  # leaves one t for each of the others
        edges.append(min(max(last, first) + 1, most))
    return [*edges, T + 1]


def _posterior(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), and its variance, for t = 0..T.

    Both (T + 1,) float64, and 0 at t = 0.
    """
    t = torch.arange(1, schedule.num_timesteps + 1)
    ones = torch.ones(len(t), 1, 1, 1, dtype=torch.float64)
    of_x0, variance = schedule.posterior(ones, torch.zeros_like(ones), t)
    return F.pad(of_x0.flatten(), (1, 0)), F.pad(variance.flatten(), (1, 0))


def _prior(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)), (B,) nats.

    (alpha_bar (x_0^2 - 1) - log(1 - alpha_bar)) / 2 for each pixel.
    """
    alpha_bar = float(schedule.alpha_bar[-1])
    log_variance = float(schedule.sigma_squared[-1].log())
    return (alpha_bar * (x0.square() - 1) - log_variance).flatten(1).sum(1) / 2


def _kl(
    schedule: NoiseSchedule, variance: Tensor, t: Tensor, error: Tensor, num_pixels: int
) -> Tensor:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(posterior mean of x0-hat, variance)), (B, n) nats.

    t: (B, n). The two means differ by the posterior's coefficient of x_0 times the error of x0-hat;
    ``error`` is its square, summed over the pixels. Coefficients are float64 and cast last.
    """
    of_x0, posterior_variance = _posterior(schedule)
    ratio = posterior_variance / variance
    of_error = of_x0.square() / variance / 2
    constant = (ratio - 1 - ratio.log()) / 2
    return of_error[t.cpu()].to(error) * error + constant[t.cpu()].to(error) * num_pixels


def _negative_log_prob(x0: Tensor, x0_hat: Tensor, variance: Tensor, discrete: bool) -> Tensor:
    """L_0 = -log p(x_0 | x_1) of N(x0-hat, variance), (B,) nats.

    The posterior mean at t = 1 is x0-hat itself.
    """
    p = DiagonalGaussian(x0_hat, variance.log().to(x0_hat))
    log_prob = p.log_mass(x0) if discrete else p.log_prob(x0)
    return -log_prob.flatten(1).sum(1)
