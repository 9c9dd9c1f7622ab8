"""The variational autoencoder; beta, annealing, capacity and free bits are settings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.beta import Beta
from src.distribution import DiagonalGaussian
from src.errors import require, require_count
from src.likelihood import Likelihood
from src.model.base import Effort, GenerativeModel, Scores
from src.network.layers import MAX_WIDTH
from src.noise import Generators, randn


class VAE(GenerativeModel):
    """VAE with prior N(0, I) and a diagonal Gaussian q(z | x) (Kingma & Welling 2014, eq. 10).

    loss = -E_q[log p(x | z)] + beta(KL(q(z | x) || p(z))), in nats per image: summed over pixels
    and latents, so that beta means what it means in the papers.

    Arguments:
        encoder: (B, C, H, W) -> (B, encoder.num_features).
        decoder: (B, latent_dim) -> (B, C, H, W).
        likelihood: p(x | z), of the decoder's output.
        beta: penalty of the KL over training.
        latent_dim: number of latents.
        free_bits: nats per latent below which the KL is not penalised in training (Kingma et al.
            2016, eq. 16); the reported ELBO is always the true one.
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
        require_count("latent_dim", latent_dim, MAX_WIDTH)
        require(free_bits >= 0, "free_bits", free_bits, "must be >= 0 nats per latent")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.beta = beta
        self.latent_dim = latent_dim
        self.free_bits = free_bits
        self.to_posterior = nn.Linear(encoder.num_features, 2 * latent_dim)
        self.likelihood_kind = f"lower bound (ELBO, one sample of z), {likelihood.scale}"
        self.discrete_scale = likelihood.discrete_scale

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x). log_var is clamped to [-20, 20]: outside, exp leaves float32's useful range."""
        output = _at_least_float32(self.to_posterior(self.encoder(x)))
        mean, log_var = output.chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var.clamp(-20, 20))

    def encode(self, x: Tensor) -> Tensor:
        """Mean of q(z | x), (B, latent_dim)."""
        return self.posterior(x).mean

    def loss(
        self, x: Tensor, label: Tensor | None = None, generator: Generators = None
    ) -> dict[str, Tensor]:
        """The objective, and the true ELBO with its two parts: elbo = reconstruction - kl."""
        reconstruction, kl_per_latent = self._terms(x, self.likelihood.log_prob, generator)
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
        """ELBO, a lower bound of log p(x), by one sample of z and the analytic KL: (B,) nats."""
        reconstruction, kl_per_latent = self._terms(x, self.likelihood.log_prob, generator)
        return reconstruction - kl_per_latent.sum(1)

    def log_weights(
        self,
        x: Tensor,
        num: int,
        generator: Generators = None,
        *,
        chunk: int = 50,
        discrete: bool = False,
    ) -> Tensor:
        """Log importance weights log p(x | z) + log p(z) - log q(z | x), (num, B) nats.

        z is drawn from q(z | x). The mean of the weights (not of their logarithms) is an
        unbiased estimate of p(x).

        Arguments:
            num: draws of z for each image.
            chunk: draws decoded at a time.
            discrete: p(x | z) is the probability of the discrete values instead of
                ``log_likelihood``'s scale.
        """
        log_prob = self.likelihood.log_mass if discrete else self.likelihood.log_prob
        q = self.posterior(x)
        prior = DiagonalGaussian(*q.mean.new_zeros(2))
        weights = []
        for start in range(0, num, chunk):
            size = min(chunk, num - start)
            mean = q.mean.unsqueeze(1).expand(-1, size, -1)
            own = DiagonalGaussian(mean, q.log_var.unsqueeze(1))
            # (B, size, latent_dim): an image's draws come from its own generator
            z = own.sample(generator)
            output = _at_least_float32(self.decoder(z.flatten(0, 1)))
            likelihood = log_prob(output, x.repeat_interleave(size, 0)).view(-1, size)
            weights.append(likelihood + (prior.log_prob(z) - own.log_prob(z)).sum(2))
        return torch.cat(weights, dim=1).T

    @torch.no_grad()
    def score(self, x: Tensor, effort: Effort, generator: Generators = None) -> Scores:
        """ELBO of one sample of z, importance-weighted bound of k (Burda et al. 2016, eq. 8).

        log_likelihood: ``elbo`` and ``iwae_<k>``; parts: ``distortion`` + ``rate`` is -elbo (Alemi
        et al. 2018). All in nats of the discrete values (``discrete_scale``). Raises ValueError
        where x has other values than these.
        """
        k = effort.importance_samples
        reconstruction, kl_per_latent = self._terms(x, self.likelihood.log_mass, generator)
        rate = kl_per_latent.sum(1)
        log_weights = self.log_weights(x, k, generator, chunk=effort.chunk, discrete=True)
        iwae = log_weights.logsumexp(0) - math.log(k)
        return Scores(
            {"elbo": reconstruction - rate, f"iwae_{k}": iwae},
            {"distortion": -reconstruction, "rate": rate},
        )

    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean image of p(x | z) at the posterior mean."""
        return self.likelihood.mean(self.decoder(self.posterior(x).mean))

    def sample(self, num: int, label: Tensor | None = None, generator: Generators = None) -> Tensor:
        """Mean images of p(x | z), z ~ N(0, I): (num, C, H, W) in [-1, 1]."""
        weight = self.to_posterior.weight
        z = randn((num, self.latent_dim), generator, weight.device, weight.dtype)
        return self.likelihood.mean(self.decoder(z))

    def _terms(
        self, x: Tensor, log_prob: Callable[[Tensor, Tensor], Tensor], generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one z ~ q(z | x), (B,), and the KL of each latent, (B, latent_dim)."""
        posterior = self.posterior(x)
        output = _at_least_float32(self.decoder(posterior.sample(generator)))
        reconstruction = log_prob(output, x)
        return reconstruction, posterior.kl_to_standard()


def _at_least_float32(x: Tensor) -> Tensor:
    """x for densities: autocast's bfloat16 is as coarse as half a grey level."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
