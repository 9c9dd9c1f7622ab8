"""The variational autoencoder, also beta-VAE, with annealing, capacity and free bits as settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.beta import Beta
from src.distribution import DiagonalGaussian
from src.errors import require
from src.likelihood import Likelihood
from src.model.base import GenerativeModel
from src.noise import Generators, randn


class VAE(GenerativeModel):
    """VAE with prior N(0, I) and q(z | x) = N(mean, diag(exp(log_var))) (Kingma & Welling 2014, eq. 10).

    loss = -E_q[log p(x | z)] + beta(KL(q(z | x) || p(z))), in nats per image: summed over pixels and latents, so that
    beta means what it means in the papers. encoder: (B, C, H, W) -> (B, encoder.num_features); decoder:
    (B, latent_dim) -> (B, C, H, W). free_bits: nats per latent below which the KL is not penalised in training
    (Kingma et al. 2016, eq. 16); the reported ELBO is always the true one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        beta: Beta,
        latent_dim: int,
        free_bits: float = 0.0,
    ) -> None:
        super().__init__()
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be >= 1")
        require(free_bits >= 0, "free_bits", free_bits, "must be >= 0 nats per latent")
        self.encoder, self.decoder, self.likelihood, self.beta = encoder, decoder, likelihood, beta
        self.latent_dim, self.free_bits = latent_dim, free_bits
        self.to_posterior = nn.Linear(encoder.num_features, 2 * latent_dim)
        self.likelihood_kind = f"lower bound (ELBO, one sample of z), {likelihood.scale}"

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x). log_var is clamped to [-20, 20]: outside, exp leaves float32's useful range."""
        mean, log_var = _at_least_float32(self.to_posterior(self.encoder(x))).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var.clamp(-20, 20))

    def loss(self, x: Tensor, label: Tensor | None = None, generator: Generators = None) -> dict[str, Tensor]:
        """The objective, and the true ELBO with its two parts: elbo = reconstruction - kl."""
        reconstruction, kl_per_latent = self._terms(x, generator)
        kl = kl_per_latent.sum(1)
        penalised = kl
        if self.training and self.free_bits > 0:
            penalised = kl_per_latent.mean(0).clamp(min=self.free_bits).sum().expand_as(kl)
        penalty = self.beta(penalised, self.step if self.training else None)
        return {
            "loss": (penalty - reconstruction).mean(),
            "elbo": (reconstruction - kl).mean(),
            "reconstruction": reconstruction.mean(),
            "kl": kl.mean(),
        }

    def log_likelihood(self, x: Tensor, generator: Generators = None) -> Tensor:
        """ELBO of each image with one sample of z and the analytic KL: a lower bound of log p(x), (B,) nats."""
        reconstruction, kl_per_latent = self._terms(x, generator)
        return reconstruction - kl_per_latent.sum(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean image of p(x | z) at the posterior mean."""
        return self.likelihood.mean(self.decoder(self.posterior(x).mean))

    def sample(self, num: int, label: Tensor | None = None, generator: Generators = None) -> Tensor:
        """Mean images of p(x | z), z ~ N(0, I): (num, C, H, W) in [-1, 1]."""
        weight = self.to_posterior.weight
        z = randn((num, self.latent_dim), generator, weight.device, weight.dtype)
        return self.likelihood.mean(self.decoder(z))

    def _terms(self, x: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
        """log p(x | z) with one z ~ q(z | x), (B,), and the analytic KL of each latent, (B, latent_dim)."""
        posterior = self.posterior(x)
        reconstruction = self.likelihood.log_prob(_at_least_float32(self.decoder(posterior.sample(generator))), x)
        return reconstruction, posterior.kl_to_standard()


def _at_least_float32(x: Tensor) -> Tensor:
    """Densities are computed in float32 or better: autocast's bfloat16 is as coarse as half a grey level."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
