"""The denoising diffusion model: DDPM with any schedule, prediction, weighting and sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from src.bound import variational_bound
from src.errors import ConfigError
from src.flow import flow_bound
from src.model.base import Effort, GenerativeModel, Scores
from src.noise import Generators, randint, randn
from src.prediction import Prediction
from src.schedule.base import NoiseSchedule
from src.weighting import Weighting


class Diffusion(GenerativeModel):
    """DDPM: a network trained on the weighted squared error of its output (Ho et al. 2020, eq. 14).

    Arguments:
        network: (x_t (B, C, H, W), t (B,)) -> output (B, C, H, W).
        schedule: of the noise.
        prediction: what the output is: eps, x0 or v.
        weighting: of the squared error, over t.
        sampler: a function of src/sampler with its settings filled in.
        shape: (C, H, W) of what is diffused.
        clip_denoised: clip x0-hat to [-1, 1] while sampling and in the variational bound.

    Raises ConfigError where parts do not fit together.
    """

    discrete_scale = "8-bit"
    likelihood_kind = (
        f"lower bound (variational, {Effort().timesteps} time steps), probability of 8-bit values"
    )

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction,
        weighting: Weighting,
        sampler: Callable[..., Tensor],
        shape: Sequence[int],
        clip_denoised: bool = True,
    ) -> None:
        super().__init__()
        _check_network(network, shape)
        _check_prediction(prediction, schedule)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.weighting = weighting
        self.sampler = sampler
        self.shape = tuple(shape)
        self.clip_denoised = clip_denoised
        _check_sampler(sampler, schedule)

    def loss(
        self, x: Tensor, label: Tensor | None = None, generator: Generators = None
    ) -> dict[str, Tensor]:
        """Weighted squared error at t uniform in 1..T, mean over pixels; "mse" is unweighted."""
        t = self.draw_times(len(x), generator, x.device)
        eps = randn(x.shape, generator, x.device, x.dtype)
        signal, sigma = self.schedule.scales(t)
        output = self.network(self.schedule.add_noise(x, eps, t), t)
        target = self.prediction.target(x, eps, signal, sigma)
        error = (output - target).square().mean((1, 2, 3), keepdim=True)
        _, c_out = self.prediction.coefficients(signal, sigma)
        weight = self.weighting(signal, sigma, c_out)
        return {"loss": (weight * error).mean(), "mse": error.mean()}

    def draw_times(
        self, num: int, generator: Generators = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """t of ``num`` images, uniform in 1..T: the first draw from a generator."""
        return randint(1, self.schedule.num_timesteps + 1, num, generator, device)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Estimate of x_0 from x_t (B, C, H, W) at t (B,) long, clipped if so configured."""
        x0 = self._estimate(x_t, t)
        return x0.clamp(-1, 1) if self.clip_denoised else x0

    def log_likelihood(self, x: Tensor, generator: Generators = None) -> Tensor:
        """``vlb_large`` of ``score`` at the default budget: lower bound of log P(x), (B,) nats."""
        return self.score(x, Effort(), generator).log_likelihood["vlb_large"]

    @torch.no_grad()
    def score(self, x: Tensor, effort: Effort, generator: Generators = None) -> Scores:
        """Lower bounds of the log-probability of 8-bit images x (B, C, H, W) in [-1, 1], in nats.

        log_likelihood: ``vlb_large`` and ``vlb_small``, the variational bound with either variance
        from ``effort.timesteps`` noisy images (src/bound.py); ``flow``, by the probability-flow ODE
        with x0-hat unclipped (its divergence needs a smooth map), where ``effort.flow_steps`` is
        given (src/flow.py).

        parts: ``distortion_<variance>`` is L_0 and ``rate_<variance>`` the rest of the bound, (B,)
        (Ho et al. 2020, section 4.3); ``L_t_<variance>`` (B, n) are the single terms L_{t-1} at
        ``times``.
        """
        bound = variational_bound(
            self.denoise, self.schedule, x, num_timesteps=effort.timesteps, generator=generator
        )
        estimates, parts = {}, {}
        for variance, terms in bound.terms.items():
            log_likelihood = bound.log_likelihood(variance)
            distortion = bound.reconstruction[variance]
            estimates[f"vlb_{variance}"] = log_likelihood
            parts[f"rate_{variance}"] = -log_likelihood - distortion
            parts[f"distortion_{variance}"] = distortion
            parts[f"L_t_{variance}"] = terms
        if effort.flow_steps is not None:
            estimates["flow"] = flow_bound(
                self._estimate, self.schedule, x, num_steps=effort.flow_steps, generator=generator
            )
        return Scores(estimates, parts, bound.times)

    @torch.no_grad()
    def sample(self, num: int, label: Tensor | None = None, generator: Generators = None) -> Tensor:
        """Images (num, C, H, W) in [-1, 1] by the sampler, from noise x_T."""
        return self._sample(self.denoise, num, generator)

    @torch.no_grad()
    def trajectory(
        self, num: int, generator: Generators = None
    ) -> tuple[list[int], Tensor, Tensor]:
        """Times T ... 0 at which the sampler calls the network, states x_t and estimates x0-hat.

        States and estimates are (len(times), num, C, H, W); the last of both is the sample.
        """
        times, states, estimates = [], [], []

        def recording(x_t: Tensor, t: Tensor) -> Tensor:
            x0 = self.denoise(x_t, t)
            times.append(int(t[0]))
            states.append(x_t)
            estimates.append(x0)
            return x0

        last = self._sample(recording, num, generator)
        return [*times, 0], torch.stack([*states, last]), torch.stack([*estimates, last])

    def _estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self.schedule.scales(t)
        return self.prediction.to_x0(self.network(x_t, t).to(x_t.dtype), x_t, signal, sigma)

    def _sample(
        self, denoise: Callable[[Tensor, Tensor], Tensor], num: int, generator: Generators
    ) -> Tensor:
        device = next(self.network.parameters()).device
        noise = randn((num, *self.shape), generator, device)
        return self.sampler(denoise, self.schedule, noise, generator=generator).clamp(-1, 1)


def _check_network(network: nn.Module, shape: Sequence[int]) -> None:
    if not isinstance(network, nn.Module):
        raise ConfigError(
            "network: diffusion needs a denoiser that maps (x_t, t) to an image: "
            "unet, unet_small or mlp"
        )
    if tuple(getattr(network, "shape", shape)) != tuple(shape):
        images = f"the images are {list(shape)} (channels, height, width)"
        raise ConfigError(f"network.shape={list(network.shape)}: {images}")


def _check_prediction(prediction: Prediction, schedule: NoiseSchedule) -> None:
    signal, sigma = schedule.scales(torch.tensor([schedule.num_timesteps]))
    c_skip, c_out = prediction.coefficients(signal, sigma)
    if not (c_skip.isfinite().all() and c_out.isfinite().all()):
        name = type(prediction).__name__.lower()
        raise ConfigError(
            f"prediction={name}: says nothing about x0 at t = T, where the schedule leaves no "
            "signal; use prediction=velocity or prediction=sample, or a schedule with a lower "
            "beta_end"
        )


def _check_sampler(sampler: Callable[..., Tensor], schedule: NoiseSchedule) -> None:
    """Refuse now what the sampler would refuse after hours of training, by sampling one pixel."""
    x = torch.zeros(1, 1, 1, 1)
    try:
        sampler(lambda x_t, t: x_t, schedule, x, generator=torch.Generator())
    except ConfigError as error:
        raise error.under("sampler") from error
