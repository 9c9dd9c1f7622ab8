"""Quality of a VAE's posterior: rate, active units, aggregated posterior, collapse."""

from __future__ import annotations

import math

from torch import Tensor

from src.distribution import DiagonalGaussian
from src.metric.base import Measurement

MIN_VARIANCE = 0.01  # of the posterior mean, above which Burda et al. call a unit active
MIN_KL = 0.01  # nats


def kl_per_latent(mean: Tensor, log_var: Tensor) -> Tensor:
    """Rate of each latent: mean over images of KL(q(z_i|x) || N(0, 1)), nats; mean, log_var: (N, L) -> (L,) float64."""
    return _kl(mean, log_var).mean(0)


def active_units(mean: Tensor) -> Tensor:
    """Active latents: Cov_x(E[z_i|x]) > 0.01 (Burda et al. 2016, section 5.2); (N, L), N >= 2 -> (L,) bool."""
    return mean.double().var(0) > MIN_VARIANCE


def aggregated_posterior(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (L,) float64 of q(z) = mean over images of q(z|x): 0 and 1 if it matches the prior.

    By the law of total variance, Var z = E_x[var] + Var_x(mean); mean, log_var: (N, L).
    """
    mean = mean.double()
    return mean.mean(0), log_var.double().exp().mean(0) + mean.var(0, correction=0)


def collapse_warning(mean: Tensor, log_var: Tensor) -> str:
    """One line if latents carry less than 0.01 nats (posterior collapse, Bowman et al. 2016), else ""; (N, L) each."""
    kl = kl_per_latent(mean, log_var)
    num, collapsed = len(kl), int((kl < MIN_KL).sum())
    if not collapsed:
        return ""
    if collapsed == num:
        advice = "the decoder ignores z: anneal beta (beta=linear or cyclical), lower it or set free_bits"
    else:
        advice = "if reconstructions lack detail, lower beta or set free_bits, else latent_dim is larger than needed"
    return (
        f"{collapsed} of {num} latents carry less than {MIN_KL} nats (posterior collapse): {advice}"
    )


def latent_quality(mean: Tensor, log_var: Tensor) -> dict[str, Measurement]:
    """ "kl" (rate, nats per image), "active_units", "num_latents" of posteriors with mean and log_var (N, L).

    The error of "kl" is over images. Its context holds the rate of each latent, largest first, and how far mean and
    variance of the aggregated posterior reach. Raises ValueError unless both are finite and of one shape, N >= 2.
    """
    if mean.dim() != 2 or mean.shape != log_var.shape or len(mean) < 2:
        raise ValueError(
            f"mean {tuple(mean.shape)} and log_var {tuple(log_var.shape)} must be (N, L) with N >= 2"
        )
    kl = _kl(mean, log_var)
    if not kl.isfinite().all():
        raise ValueError("the posterior holds NaN or infinite values")
    centre, variance = aggregated_posterior(mean, log_var)
    rate = kl.sum(1)
    context = {
        "kl_per_latent": [
            round(value, 4) for value in kl.mean(0).sort(descending=True).values.tolist()
        ],
        "aggregate_mean": [round(value, 4) for value in (centre.min().item(), centre.max().item())],
        "aggregate_variance": [
            round(value, 4) for value in (variance.min().item(), variance.max().item())
        ],
    }
    error = rate.std().item() / math.sqrt(len(rate))
    measured = {
        "kl": Measurement(rate.mean().item(), error, "standard error", context=context),
        "active_units": Measurement(
            float(active_units(mean).sum()), context={"min_variance": MIN_VARIANCE}
        ),
        "num_latents": Measurement(float(mean.shape[1])),
    }
    return {name: measurement.within(n_images=len(mean)) for name, measurement in measured.items()}


def _kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return DiagonalGaussian(mean.double(), log_var.double()).kl_to_standard()
