"""What several test files share: the options of a configuration group, and data whose best denoiser is known."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def options(group):
    """One parameter per ``conf/<group>/*.yaml``, its name: a new option is tested without touching the tests."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"conf/{group} is empty"
    return pytest.mark.parametrize(group, names)


def build(group, option, T=1000, shape=(1, 4, 4), **settings):
    """The object of an option, built as the command line would, with ``settings`` on top."""
    config = {  # what the options refer to
        "schedule": {"num_timesteps": T},
        "dataset": {"image_shape": list(shape)},
        "node": OmegaConf.merge(OmegaConf.load(CONF / group / f"{option}.yaml"), settings),
    }
    return instantiate(OmegaConf.create(config).node, _convert_="all")


def schedule_of(option, T=1000):
    return build("schedule", option, num_timesteps=T)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass
class Mixture:
    """A mixture of normals for every pixel: the posterior mean of x_0 and the marginals are known exactly."""

    weights: tuple = (0.3, 0.7)
    means: tuple = (-0.6, 0.5)
    stds: tuple = (0.1, 0.2)

    def at(self, schedule, t):
        """signal_t and the weights, means and variances of the marginal of x_t."""
        signal = schedule.alpha_bar[t].sqrt()
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds))
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

    def sample(self, schedule, t, num, seed=0):
        """(num, 1, 1, 1) float64 draws of x_t, with every component's share exact and its quantiles stratified."""
        _, weights, means, variances = self.at(schedule, t)
        counts = (weights * num).round().long().tolist()
        parts = [
            mean + variance.sqrt() * torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
            for count, mean, variance in zip(counts, means, variances, strict=True)
        ]
        draws = torch.cat(parts)
        return draws[torch.randperm(len(draws), generator=seeded(seed))].view(-1, 1, 1, 1)

    def cdf(self, x):
        components = zip(self.weights, self.means, self.stds, strict=True)
        return sum(w * torch.special.ndtr((x - m) / s) for w, m, s in components)


def gaussian(mean, variance):
    return Mixture((1.0,), (mean,), (variance**0.5,))
