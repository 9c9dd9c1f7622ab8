"""What several test files share: options of a group, small models, data with a known denoiser."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.distributions import MultivariateNormal

from src.beta import Constant
from src.likelihood import Gaussian
from src.metric.frechet import covariance_part
from src.model.ae import AutoEncoder
from src.model.diffusion import Diffusion
from src.model.vae import VAE
from src.network.mlp import MLP
from src.network.mlp_autoencoder import MLPDecoder, MLPEncoder

CONF = Path(__file__).parents[1] / "conf"
SHAPE = (1, 4, 4)  # of the small models' images
LATENT, NOISE = 2, 0.3  # of the linear VAE
PATIENCE = 600  # seconds: what takes as long has failed, on any machine


def wait_until(holds):
    """Come back as soon as it is so: a slow machine gets the time that it needs."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)


def state(pid):
    """R, S, T (stopped), Z (dead, and nobody has asked), ... as Linux calls it; "" where gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def names(group):
    """The options of a group, ``conf/<group>/*.yaml``: new ones are tested as they are."""
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found, f"conf/{group} is empty"
    return found


def options(group):
    """One parameter, called like the group, per option."""
    return pytest.mark.parametrize(group, names(group))


def slow(cases):
    """Parameters for ``make test-slow``."""
    values = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*value, marks=pytest.mark.slow) for value in values]


def build(group, option, T=1000, shape=SHAPE, **settings):
    """The object of an option, built as the command line would, with ``settings`` on top."""
    config = {  # what the options refer to
        "schedule": {"num_timesteps": T},
        "dataset": {"image_shape": list(shape)},
        "node": OmegaConf.merge(OmegaConf.load(CONF / group / f"{option}.yaml"), settings),
    }
    return instantiate(OmegaConf.create(config).node, _convert_="all")


def schedule_of(option, T=1000, **settings):
    return build("schedule", option, num_timesteps=T, **settings)


def expected_bias(cov, n, m):
    """E[d^2] of n and m samples of one Gaussian, to first order.

    c [5/4 sum l_i + 1/2 sum_ij l_i l_j / (l_i + l_j)]
    """
    values = torch.linalg.eigvalsh(cov.double()).clamp(min=0)
    return float(values.sum()) * (1 / n + 1 / m) + covariance_part(values, n, m)[0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(num=8):
    return (torch.randint(256, (num, *SHAPE), generator=seeded()) / 127.5 - 1).float()


def bits():
    return images().sign()


def coders():
    return MLPEncoder(SHAPE, hidden=(32,)), MLPDecoder(4, SHAPE, hidden=(32,))


def make_ae():
    return AutoEncoder(*coders(), latent_dim=4, shape=SHAPE)


def make_vae(likelihood="gaussian", beta=None, **settings):
    return VAE(
        *coders(), build("likelihood", likelihood), beta or Constant(), latent_dim=4, **settings
    )


def make_diffusion(
    prediction="epsilon", weighting="uniform", sampler="ddim", schedule="linear", T=50
):
    parts = (
        build("prediction", prediction),
        build("weighting", weighting),
        build("sampler", sampler, num_steps=10),
    )
    return Diffusion(MLP(SHAPE, hidden=32, num_layers=1), schedule_of(schedule, T), *parts, SHAPE)


class Passing(nn.Module):
    """Encoder and decoder that change nothing but the shape."""

    num_features = math.prod(SHAPE)

    def forward(self, x):
        return x.flatten(1) if x.ndim == 4 else x.view(-1, *SHAPE)


def linear_vae(shift=0.0, log_ratio=0.0):
    """A VAE whose decoder is x = W z + b + NOISE eps.

    q is the exact posterior, moved by shift and log_ratio.
    """
    basis = torch.linalg.qr(torch.randn(16, LATENT, generator=seeded(), dtype=torch.float64))[0]
    weight, bias = basis * torch.tensor([1.5, 0.4]), torch.linspace(-0.5, 0.5, 16).double()
    # diagonal: W has orthogonal columns
    posterior_precision = 1 + torch.tensor([1.5, 0.4]).double() ** 2 / NOISE**2
    decoder = nn.Sequential(nn.Linear(LATENT, 16), nn.Unflatten(1, SHAPE)).double()
    model = VAE(Passing(), decoder, Gaussian(NOISE), Constant(), latent_dim=LATENT).double()
    with torch.no_grad():
        decoder[0].weight.copy_(weight)
        decoder[0].bias.copy_(bias)
        to_mean = weight.T / NOISE**2 / posterior_precision.unsqueeze(1)
        model.to_posterior.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        model.to_posterior.bias.copy_(
            torch.cat([shift - to_mean @ bias, log_ratio - posterior_precision.log()])
        )
    evidence = MultivariateNormal(bias, weight @ weight.T + NOISE**2 * torch.eye(16).double())
    return model, evidence


@dataclass
class Mixture:
    """A mixture of normals for every pixel: E[x_0 | x_t] and the marginals are known exactly."""

    weights: tuple = (0.3, 0.7)
    means: tuple = (-0.6, 0.5)
    stds: tuple = (0.1, 0.2)

    def at(self, schedule, t):
        """signal_t and the weights, means and variances of the marginal of x_t."""
        signal = schedule.alpha_bar[t].sqrt()
        weights, means, stds = (
            torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds)
        )
        return signal, weights, signal * means, signal**2 * stds**2 + 1 - schedule.alpha_bar[t]

    def denoiser(self, schedule):
        """(x_t, t) -> E[x_0 | x_t], one t for the whole batch."""
        own_variance = torch.tensor(self.stds, dtype=torch.float64).square()

        def denoise(x, t):
            signal, weights, means, variances = self.at(schedule, int(t[0]))
            away = x.unsqueeze(-1) - means
            logits = weights.log() - variances.log() / 2 - away.square() / (2 * variances)
            estimates = (means + signal**2 * own_variance / variances * away) / signal
            return (logits.softmax(-1) * estimates).sum(-1)

        return denoise

    def sample(self, schedule, t, num):
        """(num, 1, 1, 1) float64 draws of x_t.

        Every component's share is exact and its quantiles are stratified.
        """
        _, weights, means, variances = self.at(schedule, t)
        counts = (weights * num).round().long().tolist()
        parts = [
            mean
            + variance.sqrt()
            * torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
            for count, mean, variance in zip(counts, means, variances, strict=True)
        ]
        return torch.cat(parts).view(-1, 1, 1, 1)

    def cdf(self, x):
        components = zip(self.weights, self.means, self.stds, strict=True)
        return sum(w * torch.special.ndtr((x - m) / s) for w, m, s in components)


def gaussian(mean, variance):
    return Mixture((1.0,), (mean,), (variance**0.5,))


def peer_scheduler(name, process, **settings):
    """A scheduler of diffusers with our betas, and its products in float64.

    It makes them in float32.
    """
    import diffusers

    betas = process.betas[1:].tolist()
    scheduler = getattr(diffusers, name)(
        len(betas), trained_betas=betas, prediction_type="sample", **settings
    )
    scheduler.alphas_cumprod = process.alpha_bar[1:]
    return scheduler


def peer_run(scheduler, denoise, x, **settings):
    for index in scheduler.timesteps.tolist():  # theirs is t - 1
        x0 = denoise(x, torch.full((len(x),), index + 1))
        x = scheduler.step(x0, index, x, **settings).prev_sample
    return x


def atoms(levels, weights=(0.3, 0.7)):
    """Pixels that are one of the grey levels 0..255: a mixture of normals without width."""
    return Mixture(weights, tuple(level / 127.5 - 1 for level in levels), (1e-9,) * len(levels))
