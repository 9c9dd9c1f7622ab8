"""Models: the ELBO against the exact likelihood of a linear model, and what all must do."""

from functools import partial

import pytest
import torch
from support import (
    LATENT,
    SHAPE,
    Passing,
    bits,
    build,
    coders,
    images,
    linear_vae,
    make_ae,
    make_diffusion,
    make_vae,
    names,
    options,
    schedule_of,
    seeded,
)
from torch.distributions import MultivariateNormal, kl_divergence

from src.beta import Constant
from src.distribution import DiagonalGaussian
from src.errors import ConfigError
from src.likelihood import Gaussian
from src.model.ae import AutoEncoder
from src.model.base import CanDenoise, CanReconstruct, CanSample, CanScore
from src.model.diffusion import Diffusion
from src.model.vae import VAE
from src.network.mlp import MLP
from src.noise import generators, randn
from src.prediction import Epsilon
from src.sampler.ddim import ddim
from src.weighting import Uniform

DIFFUSION = [
    (group, name) for group in ("prediction", "weighting", "sampler") for name in names(group)
]
GENERATIVE = {
    f"diffusion {name}": partial(make_diffusion, **{group: name}) for group, name in DIFFUSION
}
GENERATIVE |= {f"vae {name}": partial(make_vae, name) for name in names("likelihood")}
MODELS = {"ae": make_ae} | GENERATIVE


def trained(name, steps=60):
    """A model after ``steps`` Adam steps on one batch with the same noise, and its losses."""
    torch.manual_seed(0)
    model, losses = MODELS[name](), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = model.loss(bits(), generator=generators(range(8)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_is_learned_and_a_gradient_reaches_every_parameter(name):
    model, losses = trained(name)
    assert losses[0] - losses[-1] > 0.5 * abs(losses[0])
    for parameter in model.parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0
    assert all(
        value.ndim == 0 for value in model.loss(bits(), generator=generators(range(8))).values()
    )


@pytest.mark.parametrize("name", MODELS)
def test_loss_repeats_with_its_generators_and_averages_over_images(name):
    model, x = trained(name, 1)[0].eval(), bits()
    whole = model.loss(x, generator=generators(range(8)))["loss"]
    assert torch.equal(whole, model.loss(x, generator=generators(range(8)))["loss"])
    single = [model.loss(x[[i]], generator=generators([i]))["loss"] for i in range(8)]
    torch.testing.assert_close(whole, torch.stack(single).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GENERATIVE)
def test_samples_are_images_that_depend_on_their_own_generator_alone(name):
    model = trained(name, 1)[0].eval()
    samples = model.sample(5, generator=generators(range(5)))
    assert samples.shape == (5, *SHAPE)
    assert samples.abs().max() <= 1
    assert torch.equal(samples, model.sample(5, generator=generators(range(5))))
    torch.testing.assert_close(
        samples[[3]], model.sample(1, generator=generators([3])), rtol=0, atol=1e-5
    )
    assert not torch.allclose(samples[0], samples[1], atol=1e-3)


def test_capabilities():
    for model, capabilities in (
        (make_ae(), {CanReconstruct}),
        (make_vae(), {CanSample, CanReconstruct, CanScore}),
        (make_diffusion(), {CanSample, CanScore, CanDenoise}),
    ):
        assert {
            c for c in (CanSample, CanReconstruct, CanScore, CanDenoise) if isinstance(model, c)
        } == capabilities


def test_byte_codes_are_within_half_a_level():
    model = AutoEncoder(Passing(), Passing(), latent_dim=16, shape=SHAPE)
    x = 3 * torch.randn(500, *SHAPE, generator=seeded())
    code = model.compress(x)
    assert (code.dtype, code.shape) == (torch.uint8, (500, 16))
    assert code.min() < 20
    assert code.max() > 235
    error = (model.decompress(code) - model.reconstruct(x)).abs().max()
    assert 0.9 / 255 < error <= 1.001 / 255


def test_compression_is_reported_outside_training():
    model, x = make_ae(), images()
    assert set(model.train().loss(x)) == {"loss"}
    losses = model.eval().loss(x)
    assert losses["compression_ratio"] == model.compression_ratio == 4.0
    errors = (model.decompress(model.compress(x)) - x).square().flatten(1).mean(1)
    assert losses["psnr_compressed"].item() == pytest.approx(
        (10 * (4 / errors).log10()).mean().item(), rel=1e-5
    )
    torch.testing.assert_close(losses["loss"], (model.decoder(model.encode(x)) - x).square().mean())


@torch.no_grad()
@pytest.mark.parametrize(("shift", "log_ratio"), [(0.0, 0.0), (0.3, 0.0), (0.0, -0.7), (-0.2, 0.5)])
def test_elbo_is_the_log_likelihood_less_the_gap(shift, log_ratio):
    model, evidence = linear_vae(shift, log_ratio)
    exact_model, _ = linear_vae()
    x = images(5).double()
    exact, q, p = evidence.log_prob(x.flatten(1)), model.posterior(x), exact_model.posterior(x)
    gap = kl_divergence(
        *(MultivariateNormal(d.mean, torch.diag_embed(d.log_var.exp())) for d in (q, p))
    )
    if shift == log_ratio == 0:
        assert (gap == 0).all()

    # log p(x | z) is quadratic in z, so that its mean over the 2 LATENT sigma points of q is exact
    points = LATENT**0.5 * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)]).double()
    expected = [
        model.likelihood.log_prob(model.decoder(q.mean + (q.log_var / 2).exp() * point), x)
        for point in points
    ]
    elbo = sum(expected) / len(points) - q.kl_to_standard().sum(1)
    torch.testing.assert_close(elbo, exact - gap, rtol=0, atol=1e-6)

    draws = torch.stack([model.log_likelihood(x, seeded(seed)) for seed in range(2000)])
    assert ((draws.mean(0) - elbo).abs() < 5 * draws.std(0) / 2000**0.5).all()
    torch.testing.assert_close(model.reconstruct(x), model.decoder(q.mean).clamp(-1, 1))


@pytest.mark.parametrize("training", [True, False])
@options("likelihood")
def test_loss_is_the_negative_elbo_with_the_kl_times_beta(likelihood, training):
    torch.manual_seed(0)
    model, x = make_vae(likelihood).train(training), bits()
    for value in (0.0, 1.0, 4.0):
        model.beta = Constant(value)
        losses = model.loss(x, generator=seeded())
        assert losses["kl"] > 0
        torch.testing.assert_close(losses["elbo"], losses["reconstruction"] - losses["kl"])
        torch.testing.assert_close(losses["elbo"], model.log_likelihood(x, seeded()).mean())
        torch.testing.assert_close(losses["loss"], value * losses["kl"] - losses["reconstruction"])
    assert model.likelihood.scale in model.likelihood_kind


def test_beta_follows_the_step_in_training_and_is_final_in_validation():
    torch.manual_seed(0)
    model, x = make_vae(beta=build("beta", "linear", warmup_steps=10)), bits()

    def weight():
        losses = model.loss(x, generator=seeded())
        return ((losses["loss"] + losses["reconstruction"]) / losses["kl"]).item()

    for step, expected in ((0, 0.0), (5, 0.5), (10, 1.0), (20, 1.0)):
        model.train().step = step
        assert weight() == pytest.approx(expected, abs=1e-4)
        model.eval()
        assert weight() == pytest.approx(1, abs=1e-4)


def test_free_bits_penalise_only_what_is_above_them():
    """Latents of 0.1 and 2 nats, 0.5 free: the penalty is 0.5 + 2, no gradient in the first."""
    mean = torch.tensor([0.2, 4.0]).double().sqrt()  # KL = mean^2 / 2 for unit variance
    model, _ = linear_vae()
    model.free_bits = 0.5
    with torch.no_grad():
        model.to_posterior.weight.zero_()
        model.to_posterior.bias.copy_(torch.cat([mean, torch.zeros(2)]))
    x = images(5).double()
    losses = model.train().loss(x, generator=seeded())
    kl, penalty = losses["kl"].item(), (losses["loss"] + losses["reconstruction"]).item()
    assert (kl, penalty) == (pytest.approx(2.1), pytest.approx(2.5))
    assert losses["elbo"].item() == pytest.approx(losses["reconstruction"].item() - 2.1)
    gradient = torch.autograd.grad(
        losses["loss"] + losses["reconstruction"], model.to_posterior.bias
    )[0]
    torch.testing.assert_close(gradient[:2], torch.tensor([0.0, 2.0]).double())
    losses = model.eval().loss(x, generator=seeded())
    assert (losses["loss"] + losses["elbo"]).item() == pytest.approx(0, abs=1e-9)


def test_free_bits_clamp_the_batch_mean_of_each_latent_not_each_image(monkeypatch):
    """KL of (0.1, 2) and (1.3, 0.2) nats, 0.8 free: means 0.7 and 1.1, the penalty 0.8 + 1.1."""
    kl = torch.tensor([[0.1, 2.0], [1.3, 0.2]]).double()
    q = DiagonalGaussian((2 * kl).sqrt(), torch.zeros(2, 2).double())  # KL = mean^2 / 2
    model, _ = linear_vae()
    model.free_bits = 0.8
    monkeypatch.setattr(model, "posterior", lambda x: q)
    losses = model.train().loss(images(2).double(), generator=seeded())
    assert losses["kl"].item() == pytest.approx(1.8)
    assert (losses["loss"] + losses["reconstruction"]).item() == pytest.approx(0.8 + 1.1)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ConfigError, match="^latent_dim=0"):
        AutoEncoder(*coders(), latent_dim=0, shape=SHAPE)
    with pytest.raises(ConfigError, match="^latent_dim=-1"):
        VAE(*coders(), Gaussian(), Constant(), latent_dim=-1)
    with pytest.raises(ConfigError, match=r"^free_bits=-0\.5"):
        make_vae(free_bits=-0.5)


def test_untrained_network_has_the_loss_of_its_target():
    """A network that outputs 0 has E[eps^2] = 1; t reaches both ends of 1..T and never 0."""
    model, seen = make_diffusion(T=10), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    losses = model.loss(images(4000).expand(4000, *SHAPE), generator=seeded())
    assert losses["loss"].item() == pytest.approx(1, abs=5 * (2 / 64_000) ** 0.5)
    assert torch.equal(losses["loss"], losses["mse"])
    assert torch.cat(seen).unique().tolist() == list(range(1, 11))


@pytest.mark.parametrize("clip", [True, False])
def test_estimates_are_clipped_if_so_configured(clip):
    model, x_t = make_diffusion(), 10 * torch.randn(4, *SHAPE, generator=seeded())
    model.clip_denoised = clip
    assert (model.denoise(x_t, torch.full((4,), 50)).abs().max() <= 1) == clip
    assert model.sample(4, generator=seeded()).abs().max() <= 1


@options("sampler")
def test_trajectory_ends_at_the_sample(sampler):
    model = make_diffusion(sampler=sampler)
    times, states, estimates = model.trajectory(3, generator=generators(range(3)))
    assert (times[0], times[-1]) == (50, 0)
    assert times == sorted(times, reverse=True)
    assert states.shape == estimates.shape == (len(times), 3, *SHAPE)
    assert torch.equal(states[0], randn((3, *SHAPE), generators(range(3))))
    assert torch.equal(estimates[1], model.denoise(states[1], torch.full((3,), times[1])))
    for last in (states[-1], estimates[-1]):
        assert torch.equal(last, model.sample(3, generator=generators(range(3))))


def test_training_follows_a_validation_in_inference_mode():
    model = make_diffusion()
    with torch.inference_mode():
        model.sample(2, generator=seeded())
    model.loss(images(), generator=seeded())["loss"].backward()


@options("sampler")
def test_construction_tries_the_sampler_without_touching_the_global_generator(sampler):
    parts = (MLP(SHAPE, 8, 1), schedule_of("linear", 50), Epsilon(), Uniform())
    with pytest.raises(ConfigError, match=r"^sampler\.num_steps=51"):
        Diffusion(*parts, build("sampler", sampler, num_steps=51), SHAPE)
    before = torch.get_rng_state()
    Diffusion(*parts, build("sampler", sampler, num_steps=50), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_diffusion_refuses_an_autoencoder_for_a_network():
    parts = (schedule_of("linear", 50), Epsilon(), Uniform(), ddim)
    with pytest.raises(ConfigError, match="^network: .*unet"):
        Diffusion(dict(zip(("encoder", "decoder"), coders(), strict=True)), *parts, SHAPE)
