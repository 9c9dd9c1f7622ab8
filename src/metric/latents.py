"""Quality of a VAE's posterior: rate, active units, aggregated posterior, collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.distribution import DiagonalGaussian
from src.metric.base import Measurement

MIN_VARIANCE = 0.01  # of the posterior mean, above which Burda et al. call a unit active
MIN_KL = 0.01  # nats


def kl_per_latent(mean: Tensor, log_var: Tensor) -> Tensor:
    """Rate of each latent in nats: mean over images of KL(q(z_i|x) || N(0, 1)).

    mean, log_var: (N, L) -> (L,) float64.
    """
    return _kl(mean, log_var).mean(0)


def active_units(mean: Tensor) -> Tensor:
    """Active latents: Cov_x(E[z_i|x]) > 0.01 (Burda et al. 2016, section 5.2).

    mean: (N, L), N >= 2 -> (L,) bool.
    """
    return mean.double().var(0) > MIN_VARIANCE


def aggregated_posterior(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (L,) float64 of q(z) = mean over images of q(z|x).

    They are 0 and 1 if q(z) matches the prior. By the law of total variance,
    Var z = E_x[var] + Var_x(mean). mean, log_var: (N, L).
    """
    mean = mean.double()
    return mean.mean(0), log_var.double().exp().mean(0) + mean.var(0, correction=0)


def collapse_warning(mean: Tensor, log_var: Tensor) -> str:
    """One line on posterior collapse (Bowman et al. 2016): latents with less than 0.01 nats.

    "" where there are none. mean, log_var: (N, L).
    """
    kl = kl_per_latent(mean, log_var)
    num = len(kl)
    collapsed = int((kl < MIN_KL).sum())
    if not collapsed:
        return ""
    advice = (
        "if reconstructions lack detail, lower beta or set free_bits, "
        "else latent_dim is larger than needed"
    )
    if collapsed == num:
        advice = (
            "the decoder ignores z: anneal beta (beta=linear or cyclical), "
            "lower it or set free_bits"
        )
    found = f"{collapsed} of {num} latents carry less than {MIN_KL} nats"
    return f"{found} (posterior collapse): {advice}"


def latent_quality(mean: Tensor, log_var: Tensor) -> dict[str, Measurement]:
    """ "kl" (rate, nats per image), "active_units", "num_latents" of posteriors.

    mean, log_var: (N, L). The error of "kl" is over images. Its context holds the rate of each
    latent, largest first, and how far mean and variance of the aggregated posterior reach. Raises
    ValueError unless both are finite and of one shape, N >= 2.
    """
    if mean.dim() != 2 or mean.shape != log_var.shape or len(mean) < 2:
        found = f"mean {tuple(mean.shape)} and log_var {tuple(log_var.shape)}"
        raise ValueError(f"{found} must be (N, L) with N >= 2")
    kl = _kl(mean, log_var)
    if not kl.isfinite().all():
        raise ValueError("the posterior holds NaN or infinite values")
    centre, variance = aggregated_posterior(mean, log_var)
    rate = kl.sum(1)
    context = {
        "kl_per_latent": _rounded(kl.mean(0).sort(descending=True).values),
        "aggregate_mean": _rounded(torch.stack(centre.aminmax())),
        "aggregate_variance": _rounded(torch.stack(variance.aminmax())),
    }
    error = rate.std().item() / math.sqrt(len(rate))
    active = float(active_units(mean).sum())
    measured = {
        "kl": Measurement(rate.mean().item(), error, "standard error", context=context),
        "active_units": Measurement(active, context={"min_variance": MIN_VARIANCE}),
        "num_latents": Measurement(float(mean.shape[1])),
    }
    return {name: measurement.within(n_images=len(mean)) for name, measurement in measured.items()}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return DiagonalGaussian(mean.double(), log_var.double()).kl_to_standard()
