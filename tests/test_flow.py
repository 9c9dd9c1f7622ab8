"""The probability-flow likelihood: Gaussians, mixtures, and images of known probability."""

import math
from itertools import pairwise

import pytest
import torch
from support import Mixture, atoms, gaussian, schedule_of, seeded
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from src.errors import ConfigError
from src.flow import _times, flow_bound, flow_log_density
from src.noise import generators
from src.schedule.cosine import cosine
from src.schedule.linear import linear

BOTH = pytest.mark.parametrize("make", [linear, cosine])  # 1 / signal_T is 157 and 20,291


def exact(data, schedule, x):
    """Log density of x_1."""
    _, weights, means, variances = data.at(schedule, 1)
    return MixtureSameFamily(Categorical(weights), Normal(means, variances.sqrt())).log_prob(
        x.flatten()
    )


def errors(data, schedule, num_steps, num=41):
    """Errors of log p_1 at quantiles of x_1, in nats.

    One pixel, where the divergence is exact whatever the probe.
    """
    x = data.sample(schedule, 1, num)
    result = flow_log_density(
        data.denoiser(schedule), schedule, x, num_steps=num_steps, generator=seeded()
    )
    return result - exact(data, schedule, x)


@BOTH
@pytest.mark.parametrize(
    "data", [gaussian(0.0, 0.25), gaussian(0.0, 4.0), gaussian(0.3, 0.01), Mixture()], ids=str
)
def test_density_of_gaussians_and_a_mixture(make, data):
    found = errors(data, make(1000), num_steps=100)
    assert found.abs().max() < 0.01
    assert found.mean().abs() < 3e-3


@BOTH
def test_standard_normal_data_stay_where_they_are(make):
    x = 2 * torch.randn(8, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    schedule = make(1000)

    def denoise(x_t, t):
        return schedule.alpha_bar[t].sqrt().view(-1, 1, 1, 1) * x_t

    result = flow_log_density(denoise, schedule, x, num_steps=3, generator=seeded())
    torch.testing.assert_close(
        result, Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3)), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (linear, gaussian(0.0, 0.25)),
        (cosine, gaussian(0.2, 0.25)),
        (cosine, Mixture(stds=(0.2, 0.3))),
    ],
)
def test_convergence_is_of_second_order(make, data):
    """T is large: rounding of the times does not show; linear ends with a trace of the mean."""
    schedule = make(100_000)
    found = [errors(data, schedule, n).abs().max().item() for n in (20, 40, 80)]
    assert [math.log2(a / b) for a, b in pairwise(found)] == pytest.approx([2, 2], abs=0.2)


@BOTH
def test_divergence_of_dependent_pixels_is_unbiased(make):
    """Four pixels with a full covariance: the probes' average is the exact density per image."""
    schedule, copies = make(1000), 400
    root = torch.randn(4, 4, generator=seeded(1), dtype=torch.float64) / 2
    cov = root @ root.T + 0.05 * torch.eye(4)

    def marginal(t):
        return schedule.alpha_bar[t] * cov + schedule.sigma_squared[t] * torch.eye(4)

    def denoise(x_t, t):
        t = int(t[0])
        # both are functions of cov
        gain = schedule.alpha_bar[t].sqrt() * torch.linalg.solve(marginal(t), cov)
        return (x_t.flatten(1) @ gain).view_as(x_t)

    x = torch.linalg.cholesky(marginal(1)) @ torch.randn(
        4, 5, generator=seeded(2), dtype=torch.float64
    )
    x = x.T.view(5, 1, 2, 2)
    result = flow_log_density(
        denoise,
        schedule,
        x.repeat(copies, 1, 1, 1),
        num_steps=80,
        generator=generators(range(5 * copies)),
    ).view(copies, 5)
    expected = MultivariateNormal(torch.zeros(4).double(), marginal(1)).log_prob(x.flatten(1))
    error = result.std(0) / copies**0.5
    assert (error > 1e-4).all()  # off-diagonal elements make noise
    assert ((result.mean(0) - expected).abs() < 5 * error + 2e-3).all()


@pytest.mark.parametrize("levels", [(0, 255), (100, 180), (0, 128)])
def test_dequantised_bound_of_two_distant_levels(levels):
    """x_1 tells the level, so that p_1 / q(x_1 | x_0) is the level's weight.

    The bound costs P(x_0 | x_1) alone.
    """
    schedule, data, copies = linear(1000), atoms(levels), 100
    x0 = torch.tensor(data.means, dtype=torch.float64).repeat_interleave(copies).view(-1, 1, 1, 1)
    found = flow_bound(
        data.denoiser(schedule), schedule, x0, num_steps=200, generator=seeded()
    ).view(2, copies)
    for level, weight, result in zip(levels, data.weights, found, strict=True):
        side = torch.special.ndtr(1 / 255 / schedule.sigma_squared[1].sqrt())
        mass = side if level in (0, 255) else 2 * side - 1
        assert result.mean().item() == pytest.approx(math.log(weight) + mass.log().item(), abs=0.01)


def test_bound_of_neighbouring_levels_is_below_their_probability():
    """Levels closer than the noise of x_1."""
    schedule, data, copies = linear(1000), atoms((100, 101)), 400
    x0 = torch.tensor(data.means, dtype=torch.float64).repeat_interleave(copies).view(-1, 1, 1, 1)
    found = flow_bound(
        data.denoiser(schedule), schedule, x0, num_steps=200, generator=seeded()
    ).view(2, copies)
    log_p = torch.tensor(data.weights, dtype=torch.float64).log()
    gap = log_p - found.mean(1)
    assert (gap > 5 * found.std(1) / copies**0.5).all()
    assert (log_p.exp() * gap).sum() < 1.5


def test_gradients_are_made_where_the_caller_has_none():
    schedule, data = linear(50), Mixture()
    x = data.sample(schedule, 1, 11)
    expected = flow_log_density(
        data.denoiser(schedule), schedule, x, num_steps=5, generator=seeded()
    )
    assert not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again = flow_log_density(
                data.denoiser(schedule), schedule, x.clone(), num_steps=5, generator=seeded()
            )
        assert torch.equal(again, expected)


def test_times_go_from_1_to_T_and_are_even_in_their_variable():
    schedule = linear(1000)
    u = (1 / schedule.alpha_bar.sqrt() - 1).log()
    for num_steps in (1, 2, 10, 5000):
        times = _times(u, num_steps)
        assert (times[0], times[-1]) == (1, 1000)
        assert times == sorted(set(times))
        assert len(times) <= num_steps + 1
    assert _times(u, 5000) == list(range(1, 1001))
    widths = u[_times(u, 10)[2:-1]].diff()
    assert widths.max() < 1.3 * widths.min()
    assert _times(u[:2], 4) == [1]  # T = 1


def test_bad_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match="^num_steps=0"):
        flow_log_density(
            lambda x_t, t: x_t, schedule_of("linear", 10), torch.zeros(1, 1, 1, 1), num_steps=0
        )
