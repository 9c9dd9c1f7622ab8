"""Distributions and likelihoods against torch.distributions and direct summation, in nats."""

import math

import mpmath
import pytest
import torch
from support import build, options, seeded
from torch import distributions as peer

from src.distribution import DiagonalGaussian
from src.errors import ConfigError
from src.likelihood import Bernoulli, Gaussian, Logistic

GREY_LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def pair(seed):
    """One distribution, ours and torch's."""
    mean, log_var = draw(2, 5, 3, seed=seed)
    return DiagonalGaussian(mean, 2 * log_var), peer.Normal(mean, log_var.exp())


def images(num=6, shape=(2, 3, 3)):
    """Images of grey levels, the ends included."""
    picks = torch.randint(256, (num, *shape), generator=seeded())
    picks[0, 0, 0, 0], picks[0, 0, 0, 1] = 0, 255
    return GREY_LEVELS[picks]


def test_gaussian_matches_torch():
    (mine, theirs), (other, their_other) = pair(0), pair(1)
    x = draw(5, 3, seed=2)
    torch.testing.assert_close(mine.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(mine.kl(other), peer.kl_divergence(theirs, their_other))
    standard = DiagonalGaussian(torch.zeros(3).double(), torch.zeros(3).double())
    torch.testing.assert_close(
        mine.kl_to_standard(), peer.kl_divergence(theirs, peer.Normal(0.0, 1.0))
    )
    torch.testing.assert_close(mine.kl_to_standard(), mine.kl(standard))
    assert (mine.kl(mine) == 0).all()


def test_gaussian_samples_have_its_moments_and_gradients():
    mean, log_var = (
        torch.tensor([0.3, -2.0]).requires_grad_(),
        torch.tensor([-1.0, 1.5]).requires_grad_(),
    )
    sample = DiagonalGaussian(mean.expand(200_000, 2), log_var.expand(200_000, 2)).sample(seeded())
    deviation = (log_var / 2).exp()
    assert ((sample.mean(0) - mean).abs() < 5 * deviation / 200_000**0.5).all()
    torch.testing.assert_close(sample.var(0), log_var.exp(), rtol=5 * (2 / 200_000) ** 0.5, atol=0)
    sample.square().mean(0).sum().backward()  # E = mean^2 + var
    torch.testing.assert_close(mean.grad, 2 * mean.detach(), rtol=0, atol=0.05)
    torch.testing.assert_close(log_var.grad, log_var.detach().exp(), rtol=0.02, atol=0)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0])
def test_gaussian_mass_sums_to_one_over_the_256_values(sigma, dtype, allowed):
    means = torch.cat(
        [torch.linspace(-1.3, 1.3, 31, dtype=torch.float64), torch.tensor([-30.0, 1 / 255, 8.0])]
    )
    gaussian = DiagonalGaussian(
        means.to(dtype).unsqueeze(1), torch.tensor(2 * math.log(sigma), dtype=dtype)
    )
    log_mass = gaussian.log_mass(GREY_LEVELS.to(dtype))
    assert log_mass.max() <= 0
    torch.testing.assert_close(
        log_mass.exp().sum(1), torch.ones_like(log_mass[:, 0]), rtol=0, atol=allowed
    )


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sigma", [1e-3, 0.02, 0.5, 4.0])
def test_gaussian_mass_matches_50_digits_in_both_tails(sigma, dtype, allowed):
    means = torch.tensor([-40.0, -1.5, -1.0, -0.3, 0.0, 1 / 255, 0.9, 2.0, 40.0], dtype=dtype)
    x = torch.tensor([-1.0, -1 + 2 / 255, 1 / 255, 0.4, 1 - 2 / 255, 1.0], dtype=dtype).unsqueeze(1)
    mine = DiagonalGaussian(means, torch.tensor(2 * math.log(sigma), dtype=dtype)).log_mass(x)

    def exact(x, mean):
        lower, upper = (
            (mpmath.mpf(x) + side / mpmath.mpf(255) - mpmath.mpf(mean)) / sigma for side in (-1, 1)
        )
        if lower > 0:
            lower, upper = -upper, -lower
        with mpmath.workdps(50):
            tails = [mpmath.erfc(-side / mpmath.sqrt(2)) / 2 for side in (lower, upper)]
            if abs(x) > 0.999:
                side = (1 / mpmath.mpf(255) + (mean - x) * (1 if x > 0 else -1)) / sigma
                return float(mpmath.log(mpmath.erfc(-side / mpmath.sqrt(2)) / 2))
            return float(mpmath.log(tails[1] - tails[0]))

    expected = torch.tensor(
        [[exact(a, b) for b in means.tolist()] for a in x.flatten().tolist()], dtype=dtype
    )
    torch.testing.assert_close(mine, expected, rtol=allowed, atol=10 * allowed)


def test_gaussian_mass_of_a_narrow_bin_is_density_times_width():
    # inside, where no bin is open
    model, output, x = Gaussian(0.7), 0.3 * draw(6, 2, 3, 3), 0.9 * images()
    per_pixel = (model.log_mass(output, x) - model.log_prob(output, x)) / 18
    torch.testing.assert_close(
        per_pixel, torch.full((6,), math.log(2 / 255)).double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["gaussian", "logistic", "bernoulli"])
def test_mass_is_the_probability_of_discrete_values(name):
    model, output = build("likelihood", name, shape=(1, 3, 3)).double(), draw(6, 1, 3, 3)
    levels, scale = (
        (torch.tensor([-1.0, 1.0]), "bits") if name == "bernoulli" else (GREY_LEVELS, "8-bit")
    )
    assert model.discrete_scale == scale
    masses = torch.stack(
        [model.log_mass(output[:, :, :1, :1], torch.full((6, 1, 1, 1), v).double()) for v in levels]
    )
    torch.testing.assert_close(masses.exp().sum(0), torch.ones(6).double())
    x = images(shape=(1, 3, 3)).sign()
    pixels = [model.log_mass(output[..., i : i + 1], x[..., i : i + 1]) for i in range(3)]
    torch.testing.assert_close(model.log_mass(output, x), sum(pixels))


def test_bits_are_asked_for_where_a_probability_is():
    with pytest.raises(
        ValueError, match=r"bits only, train with dataset\.binarize=dynamic or static$"
    ):
        Bernoulli().log_mass(draw(6, 2, 3, 3), images())


@options("likelihood")
def test_likelihood_contract(likelihood):
    model = build("likelihood", likelihood, shape=(2, 3, 3))
    output = 3 * draw(6, 2, 3, 3).float()
    x = images().float() if likelihood != "bernoulli" else images().sign().float()
    log_prob = model.log_prob(output, x)
    assert log_prob.shape == (6,)
    pixels = [model.log_prob(output[:, :, :, i : i + 1], x[:, :, :, i : i + 1]) for i in range(3)]
    # pixels are independent and summed, images are not mixed
    torch.testing.assert_close(log_prob, sum(pixels))
    assert model.mean(output).shape == x.shape
    assert model.mean(100 * output).abs().max() <= 1
    assert isinstance(model.scale, str)


@options("likelihood")
def test_likelihood_stays_finite_with_gradients_at_extremes(likelihood):
    for scale in (-200.0, 0.0, 50.0):
        model = build("likelihood", likelihood, shape=(1, 1, 1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(scale)
        output = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3]).repeat(3, 1).requires_grad_()
        x = torch.tensor([-1.0, 0.0039215686, 1.0]).view(3, 1).expand(3, 5)
        value = model.log_prob(output.reshape(15, 1, 1, 1), x.reshape(15, 1, 1, 1))
        value.sum().backward()
        assert value.isfinite().all()
        assert output.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_bernoulli_matches_torch_on_bits():
    logits, bits = draw(6, 2, 3, 3), (draw(6, 2, 3, 3, seed=1) > 0).double()
    theirs = peer.Bernoulli(logits=logits)
    torch.testing.assert_close(
        Bernoulli().log_prob(logits, 2 * bits - 1), theirs.log_prob(bits).sum((1, 2, 3))
    )
    torch.testing.assert_close(Bernoulli().mean(logits), 2 * theirs.mean - 1)


@pytest.mark.parametrize("sigma", [1e-4, 0.05, 0.5, 3.0, None])
def test_gaussian_likelihood_matches_torch(sigma):
    model = Gaussian(sigma).double()
    if sigma is None:
        model.log_sigma.data.fill_(math.log(0.2))
    output, x = draw(6, 2, 3, 3), images()
    expected = peer.Normal(output, sigma or 0.2).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(model.log_prob(output, x), expected, rtol=1e-6, atol=0)
    assert model.log_sigma.requires_grad == (sigma is None)
    torch.testing.assert_close(model.mean(output), output.clamp(-1, 1))


def test_learned_sigma_is_best_at_the_rms_error():
    model, output, x = Gaussian().double(), 0.3 * draw(6, 2, 3, 3), images()
    rms = (x - output).square().mean().sqrt()
    model.log_sigma.data.copy_(rms.log())
    best = model.log_prob(output, x).sum()
    best.backward()
    assert abs(model.log_sigma.grad) < 1e-9 * x.numel()
    for factor in (0.9, 1.1):
        model.log_sigma.data.copy_((rms * factor).log())
        assert model.log_prob(output, x).sum() < best


def logistic(log_scale, dtype):
    model = Logistic(1).to(dtype)
    model.log_scale.data.fill_(log_scale)
    return model


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -3.0, -1.0, 0.0, 2.0])
def test_logistic_sums_to_one_over_the_256_values(log_scale, dtype, allowed):
    means = torch.cat(
        [torch.linspace(-1.3, 1.3, 31, dtype=torch.float64), torch.tensor([-30.0, 1 / 255, 8.0])]
    )
    output, x = torch.meshgrid(means.to(dtype), GREY_LEVELS.to(dtype), indexing="ij")
    log_prob = logistic(log_scale, dtype).log_prob(
        output.reshape(-1, 1, 1, 1), x.reshape(-1, 1, 1, 1)
    )
    total = log_prob.view(len(means), 256).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=allowed)


@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.5])
def test_logistic_is_the_difference_of_cdfs(log_scale):
    output = 0.4 * draw(256)
    base = peer.TransformedDistribution(
        peer.Uniform(torch.zeros(256).double(), torch.ones(256).double(), validate_args=False),
        [peer.SigmoidTransform().inv, peer.AffineTransform(output, math.exp(log_scale))],
        validate_args=False,
    )
    upper, lower = base.cdf(GREY_LEVELS + 1 / 255), base.cdf(GREY_LEVELS - 1 / 255)
    upper[-1], lower[0] = 1, 0  # the outer bins are open
    mine = logistic(log_scale, torch.float64).log_prob(
        output.view(-1, 1, 1, 1), GREY_LEVELS.view(-1, 1, 1, 1)
    )
    torch.testing.assert_close(mine.exp(), upper - lower, rtol=1e-9, atol=1e-15)


def test_logistic_has_one_scale_per_channel():
    model, output, x = Logistic(2).double(), draw(6, 2, 3, 3), images()
    model.log_scale.data[:, 0, 0] = torch.tensor([-1.0, -3.0])
    apart = [
        logistic(s, torch.float64).log_prob(output[:, [i]], x[:, [i]])
        for i, s in enumerate((-1.0, -3.0))
    ]
    torch.testing.assert_close(model.log_prob(output, x), sum(apart))


@pytest.mark.parametrize("sigma", [0, -0.1, float("nan")])
def test_bad_sigma_is_refused(sigma):
    with pytest.raises(ConfigError, match=f"^sigma={sigma}"):
        Gaussian(sigma)
