"""The variational bound: closed forms, torch's KL divergences, data of known probability."""

import math

import pytest
import torch
from support import Mixture, atoms, gaussian, images, options, schedule_of, seeded
from torch.distributions import Normal, kl_divergence

from src import bound
from src.bound import fixed_variances, variational_bound
from src.distribution import DiagonalGaussian
from src.errors import ConfigError
from src.noise import generators
from src.schedule.cosine import cosine
from src.schedule.linear import linear

# What the bound costs beyond the entropy of N(0, v) with its exact denoiser, in bits/dim
EXCESS = [
    (linear, 1000, 0.25, "large", 0.001576),
    (linear, 1000, 0.25, "small", 0.822229),
    (cosine, 1000, 0.25, "large", 0.000883),
    (cosine, 1000, 0.25, "small", 0.764619),
    (linear, 100, 0.25, "large", 0.015813),
    *((make, T, 1.0, "large", 0.0) for make in (linear, cosine) for T in (1, 2, 20, 1000)),
]


def moments(monkeypatch, v):
    """One image and noise whose pixels have the second moments of (x_0, eps).

    The noise replaces the random one. The bound with density and linear denoiser is quadratic in
    (x_0, eps), so that it equals its expectation.
    """
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2)
    monkeypatch.setattr(bound, "randn", lambda shape, *_: eps.expand(shape))
    return v**0.5 * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2)


def excess(schedule, x0, v, **settings):
    """Bits/dim beyond the entropy of N(0, v), for each variance."""
    result = variational_bound(
        gaussian(0.0, v).denoiser(schedule), schedule, x0, discrete=False, **settings
    )
    entropy = (math.log(2 * math.pi * v) + 1) / 2
    return {
        name: -result.log_likelihood(name).item() / 4 / math.log(2) - entropy / math.log(2)
        for name in result.terms
    }


@pytest.mark.parametrize(("make", "T", "v", "variance", "expected"), EXCESS)
def test_excess_over_the_entropy_of_gaussian_data(monkeypatch, make, T, v, variance, expected):
    assert excess(make(T), moments(monkeypatch, v), v)[variance] == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("v", [0.01, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("make", [linear, cosine])
def test_best_variance_closes_the_gap(monkeypatch, make, v):
    """Var(x_{t-1} | x_t) of Gaussian data: then every p(x_{t-1} | x_t) is the true one."""
    schedule = make(200)
    marginal = v * schedule.alpha_bar + schedule.sigma_squared
    best = torch.cat([torch.zeros(1), marginal[:-1] * schedule.betas[1:] / marginal[1:]])
    gaps = excess(
        schedule, moments(monkeypatch, v), v, variances=fixed_variances(schedule) | {"best": best}
    )
    assert abs(gaps["best"]) < 1e-6
    assert min(gaps["large"], gaps["small"]) > -1e-6


@pytest.mark.parametrize("discrete", [True, False])
def test_terms_are_the_divergences_of_the_chain(discrete):
    """Against schedule.posterior and torch's KL, for a denoiser that is wrong.

    The images come with the noise that they got.
    """
    schedule, x0, calls = cosine(12), images(6).double(), []

    def denoise(x_t, t):
        calls.append((x_t, t, torch.tanh(x_t - 0.1 * t.view(-1, 1, 1, 1))))
        return calls[-1][-1]

    result = variational_bound(
        denoise, schedule, x0, num_timesteps=5, discrete=discrete, generator=seeded()
    )
    signal, sigma = schedule.scales(torch.tensor([12]))
    prior = kl_divergence(Normal(signal * x0, sigma.double()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(result.prior, prior, rtol=1e-4, atol=1e-6)
    (_, one, first), *rest = calls
    assert (one == 1).all()
    assert len(rest) == 5
    for name, variance in fixed_variances(schedule).items():
        last = DiagonalGaussian(first, variance[1].log())
        expected = -(last.log_mass(x0) if discrete else last.log_prob(x0)).sum((1, 2, 3))
        torch.testing.assert_close(result.reconstruction[name], expected)
        for i, (x_t, t, x0_hat) in enumerate(rest):
            assert torch.equal(result.times[:, i], t)
            mean, of_q = schedule.posterior(x0, x_t, t)
            model_mean, _ = schedule.posterior(x0_hat, x_t, t)
            p = Normal(model_mean, variance[t].sqrt().view(-1, 1, 1, 1))
            divergence = kl_divergence(Normal(mean, of_q.sqrt()), p).sum((1, 2, 3))
            torch.testing.assert_close(result.terms[name][:, i], divergence)
        total = (
            result.prior + (result.strata * result.terms[name]).sum(1) + result.reconstruction[name]
        )
        torch.testing.assert_close(-result.log_likelihood(name), total)


def test_variances_are_those_of_the_papers():
    schedule = linear(1000)
    variances = fixed_variances(schedule)
    assert torch.equal(variances["large"][1:], schedule.betas[1:])
    t = torch.arange(2, 1001)
    _, of_q = schedule.posterior(
        torch.zeros(999, 1, 1, 1).double(), torch.zeros(999, 1, 1, 1).double(), t
    )
    torch.testing.assert_close(variances["small"][2:], of_q.flatten(), rtol=1e-12, atol=0)
    assert variances["small"][1] == variances["small"][2]


@options("schedule")
def test_strata_cut_all_times_once(schedule):
    for T in (1, 2, 3, 50, 1000):
        process = schedule_of(schedule, T)
        for num in (1, 2, 7, 49, 100, 998, 999, None):
            edges = bound._strata(process, num)
            assert (edges[0], edges[-1]) == (2, T + 1)
            assert edges == sorted(set(edges))
            assert len(edges) - 1 == min(num or T, T - 1)


def test_strata_have_equal_shares_of_unit_gaussian_data(monkeypatch):
    """With 50 strata of 999 terms; only at the low-noise end can one t be more than a share."""
    schedule, x0 = linear(1000), moments(monkeypatch, 1.0)
    whole = variational_bound(gaussian(0.0, 1.0).denoiser(schedule), schedule, x0, discrete=False)
    edges = torch.tensor(bound._strata(schedule, 50)) - 2
    shares = torch.stack(
        [part.sum() for part in whole.terms["large"][0].split(edges.diff().tolist())]
    )
    several = edges.diff() > 3
    assert several.sum() > 20
    assert shares[several].max() < 1.2 * shares[several].min()
    assert shares[~several].min() > 0.7 * shares[several].mean()


@pytest.mark.parametrize("num", [1, 4, 20])
def test_strata_estimate_without_bias(monkeypatch, num):
    """The same noise everywhere, so that only the choice of t is random."""
    schedule, copies = linear(100), 4000
    x0 = moments(monkeypatch, 0.25)
    shrink = 0.25 * schedule.alpha_bar.sqrt() / (0.25 * schedule.alpha_bar + schedule.sigma_squared)

    def denoise(x_t, t):
        return shrink[t].view(-1, 1, 1, 1) * x_t

    whole = variational_bound(denoise, schedule, x0)
    drawn = variational_bound(
        denoise,
        schedule,
        x0.expand(copies, -1, -1, -1),
        num_timesteps=num,
        generator=generators(range(copies)),
    )
    edges = torch.tensor(bound._strata(schedule, num))
    assert ((drawn.times >= edges[:-1]) & (drawn.times < edges[1:])).all()
    assert torch.equal(drawn.strata, edges.diff())
    for name in ("large", "small"):
        estimate = drawn.log_likelihood(name)
        error = estimate.std() / copies**0.5
        assert (estimate.mean() - whole.log_likelihood(name)).abs() < 5 * error + 1e-6
        assert torch.equal(drawn.reconstruction[name].unique(), whole.reconstruction[name])


@pytest.mark.parametrize("levels", [(0, 255), (100, 180), (100, 101)])
def test_images_of_two_grey_levels_are_bounded_by_their_probability(levels):
    """log P is log 0.3 and log 0.7.

    Level by level the mean estimate stays below, and not far below on average.
    """
    schedule, data, copies = linear(200), atoms(levels), 500
    x0 = torch.tensor(data.means, dtype=torch.float64).repeat_interleave(copies).view(-1, 1, 1, 1)
    result = variational_bound(
        data.denoiser(schedule), schedule, x0, generator=generators(range(2 * copies))
    )
    for variance in ("large", "small"):
        estimate = result.log_likelihood(variance).view(2, copies)
        log_p = torch.tensor(data.weights, dtype=torch.float64).log()
        error = estimate.std(1) / copies**0.5
        assert (estimate.mean(1) < log_p + 5 * error).all()
        gap = (log_p.exp() * (log_p - estimate.mean(1))).sum()
        assert gap < (1.2 if levels == (0, 255) else 2.6)


def test_an_image_depends_on_its_own_generator_alone():
    schedule, x0 = cosine(40), images(5)

    def estimate(picks):
        shrink = variational_bound(
            lambda x_t, t: x_t * schedule.alpha_bar[t].sqrt().float().view(-1, 1, 1, 1),
            schedule,
            x0[picks],
            num_timesteps=6,
            generator=generators(picks),
        )
        return torch.stack([shrink.log_likelihood("large"), shrink.log_likelihood("small")])

    torch.testing.assert_close(
        estimate(range(5))[:, [3, 1]], estimate([3, 1]), rtol=1e-6, atol=1e-4
    )


def test_mixture_is_bounded_by_its_entropy():
    data, schedule = Mixture(), cosine(100)
    x0 = data.sample(schedule, 0, 20_000)
    result = variational_bound(
        data.denoiser(schedule), schedule, x0, discrete=False, generator=seeded()
    )
    parts = zip(data.weights, data.means, data.stds, strict=True)
    entropy = -sum(w * Normal(m, s).log_prob(x0).exp() for w, m, s in parts).log().mean()
    for variance, most in (("large", 0.1), ("small", 2.0)):
        assert 0 < -result.log_likelihood(variance).mean() - entropy < most


def test_bad_number_of_timesteps_is_refused():
    with pytest.raises(ConfigError, match="^num_timesteps=0"):
        variational_bound(lambda x_t, t: x_t, linear(10), images(2), num_timesteps=0)
