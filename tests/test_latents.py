"""Latent quality against closed forms: linear-Gaussian posteriors, and ones that have collapsed."""

import math

import pytest
import torch

from src.metric.latents import (
    active_units,
    aggregated_posterior,
    collapse_warning,
    kl_per_latent,
    latent_quality,
)
from src.noise import generator, randn

NUM = 20_000


def linear_gaussian(*noise_variances, num=NUM):
    """Exact posteriors of z ~ N(0, 1) seen through x_i = z_i + noise.

    mean x / (1 + s), variance s / (1 + s)
    """
    s = torch.tensor(noise_variances, dtype=torch.float64)
    z, noise = randn((2, num, len(s)), generator("test_latents"), dtype=torch.float64)
    mean = (z + s.sqrt() * noise) / (1 + s)
    return mean, (s / (1 + s)).log().expand_as(mean)


def prior(num, latents):
    return torch.zeros(num, latents), torch.zeros(num, latents)


def test_rate_of_a_linear_gaussian_is_its_mutual_information():
    mean, log_var = linear_gaussian(0.01, 0.5, 4.0)
    capacity = [math.log(1 + 1 / s) / 2 for s in (0.01, 0.5, 4.0)]
    assert kl_per_latent(mean, log_var).tolist() == pytest.approx(capacity, abs=0.03)
    measured = latent_quality(mean, log_var)["kl"]
    assert abs(measured.value - sum(capacity)) < 4 * measured.error


def test_the_exact_posterior_aggregates_to_the_prior():
    mean, variance = aggregated_posterior(*linear_gaussian(0.01, 0.5, 4.0))
    assert mean.abs().max() < 4 / math.sqrt(NUM)
    assert (variance - 1).abs().max() < 4 * math.sqrt(2 / NUM)


def test_the_aggregate_has_the_moments_of_its_samples():
    mean, log_var = (
        3 + 2 * randn((NUM, 2), generator("mean")),
        randn((NUM, 2), generator("log_var")),
    )
    z = mean + (log_var / 2).exp() * randn((NUM, 2), generator("z"))
    expected_mean, expected_variance = aggregated_posterior(mean, log_var)
    torch.testing.assert_close(z.double().mean(0), expected_mean, rtol=0, atol=0.1)
    torch.testing.assert_close(z.double().var(0), expected_variance, rtol=0.05, atol=0)


def test_one_image_by_hand():
    mean, log_var = torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[0.0, math.log(0.25)]] * 2)
    second = (0.25 - 1 - math.log(0.25)) / 2
    assert kl_per_latent(mean, log_var).tolist() == pytest.approx([2.0, second])
    measured = latent_quality(mean, log_var)
    assert measured["kl"].value == pytest.approx(2 + second)
    assert measured["kl"].error == 0
    assert measured["active_units"].context["n_images"] == 2
    assert measured["kl"].context["kl_per_latent"] == [2.0, round(second, 4)]


def test_kl_standard_error_is_that_of_repeated_draws():
    values = [
        latent_quality(*(half[start : start + 200] for half in linear_gaussian(0.1, 1.0)))["kl"]
        for start in range(0, NUM, 200)
    ]
    spread = torch.tensor([value.value for value in values]).std().item()
    assert sum(value.error for value in values) / len(values) == pytest.approx(spread, rel=0.25)


def test_a_unit_is_active_when_its_mean_varies_by_more_than_a_hundredth():
    """Burda et al. count the variance of the mean, whatever the posterior's own variance is."""
    alternating = torch.tensor([-1.0, 1.0]).repeat(5000)[:, None]
    mean = alternating * torch.tensor([1.0, 0.0101, 0.0099]).sqrt() + torch.tensor([0.0, 5.0, 5.0])
    # an offset is no activity
    mean[:, 1:] = alternating * torch.tensor([0.0101, 0.0099]).sqrt() + 5
    assert active_units(mean).tolist() == [True, True, False]


def test_collapse_is_reported_in_one_line():
    mean, log_var = linear_gaussian(0.1, 0.2, num=500)
    dead = prior(500, 3)
    assert collapse_warning(mean, log_var) == ""
    half = collapse_warning(torch.cat([mean, dead[0]], 1), torch.cat([log_var, dead[1]], 1))
    assert half.startswith("3 of 5 latents carry less than 0.01 nats")
    assert "latent_dim" in half
    assert "\n" not in half
    whole = collapse_warning(*dead)
    assert whole.startswith("3 of 3 latents")
    assert "decoder ignores z" in whole


def test_a_collapsed_posterior_has_rate_zero_and_no_active_unit():
    measured = latent_quality(*prior(100, 4))
    assert [measured[name].value for name in ("kl", "active_units", "num_latents")] == [0, 0, 4]


def test_half_collapsed():
    mean, log_var = (
        torch.cat(pair, 1) for pair in zip(prior(NUM, 2), linear_gaussian(0.01, 0.1), strict=True)
    )
    measured = latent_quality(mean, log_var)
    assert measured["active_units"].value == 2
    per_latent = measured["kl"].context["kl_per_latent"]
    assert per_latent == sorted(per_latent, reverse=True)
    assert per_latent[2:] == [0, 0]
    assert per_latent[:2] == pytest.approx([math.log(101) / 2, math.log(11) / 2], abs=0.03)
    assert measured["kl"].context["aggregate_variance"] == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize(
    ("mean", "log_var", "reason"),
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), r"mean \(5, 2\) and log_var \(5, 3\)"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "N >= 2"),
        (torch.zeros(5, 2), torch.full((5, 2), 2000.0), "infinite"),
        (torch.full((5, 2), math.nan), torch.zeros(5, 2), "NaN"),
    ],
)
def test_what_has_no_quality_is_refused(mean, log_var, reason):
    with pytest.raises(ValueError, match=reason):
        latent_quality(mean, log_var)
