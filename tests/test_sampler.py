"""Samplers with exact denoisers, for every conf/sampler: closed forms, orders, diffusers."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from support import Mixture, build, gaussian, options, peer_run, peer_scheduler, schedule_of, seeded

from src.errors import ConfigError
from src.noise import generators
from src.prediction import Epsilon
from src.sampler.ddim import ddim
from src.sampler.ddpm import ddpm
from src.sampler.dpm_solver import dpm_solver
from src.sampler.heun import heun
from src.schedule.cosine import cosine
from src.schedule.linear import linear

MEAN, VARIANCE = 0.3, 0.25  # of Gaussian data
NUM = 40_000  # samples, where they are counted


def run(sampler, data, schedule, num=NUM, **settings):
    """Samples of a sampler that has the exact denoiser, from exact draws of x_T."""
    return sampler(
        data.denoiser(schedule),
        schedule,
        data.sample(schedule, schedule.num_timesteps, num),
        **settings,
    )


def closed_form(schedule, times, noise):
    """Mean and standard deviation of the samples of Gaussian data.

    The recursion of an affine chain, in Python floats. noise: (a, b) -> variance that the step from
    alpha_bar a to b adds, and the coefficient of eps-hat in it.
    """
    a = float(schedule.alpha_bar[times[0]])
    mean, variance = a**0.5 * MEAN, a * VARIANCE + 1 - a
    for t, s in pairwise(times):
        a, b = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
        added, of_eps = noise(a, b)
        # x0-hat = MEAN + shrink (x_t - sqrt(a) MEAN)
        shrink = VARIANCE * a**0.5 / (VARIANCE * a + 1 - a)
        slope = b**0.5 * shrink + of_eps * (1 - a**0.5 * shrink) / (1 - a) ** 0.5
        mean = b**0.5 * MEAN + slope * (mean - a**0.5 * MEAN)
        variance = slope**2 * variance + added
    return mean, variance**0.5


def ddim_noise(eta, a, b):
    added = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
    return added, (1 - b - added) ** 0.5


def large_noise(a, b):
    _, of_eps = ddim_noise(1, a, b)
    return (1 - a / b) * (b < 1), of_eps


CHAINS = {
    "ddim": (ddim, partial(ddim_noise, 0)),
    "ddim eta 0.5": (partial(ddim, eta=0.5), partial(ddim_noise, 0.5)),
    "ddim eta 1": (partial(ddim, eta=1.0), partial(ddim_noise, 1)),
    "ddpm small": (partial(ddpm, variance="small"), partial(ddim_noise, 1)),
    "ddpm large": (partial(ddpm, variance="large"), large_noise),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_moments_of_gaussian_data_match_the_closed_form(chain, schedule):
    sampler, noise = CHAINS[chain]
    process, errors = schedule_of(schedule), []
    for num_steps in (5, 20, 100):
        mean, std = closed_form(process, process.timesteps(num_steps), noise)
        x = run(sampler, gaussian(MEAN, VARIANCE), process, num_steps=num_steps, generator=seeded())
        assert x.mean().item() == pytest.approx(mean, abs=4 * std / NUM**0.5)
        assert x.std().item() == pytest.approx(std, rel=4 / (2 * NUM) ** 0.5)
        errors.append(abs(std - VARIANCE**0.5))
    final_mean, final_std = closed_form(process, process.timesteps(1000), noise)
    assert errors[1] > errors[2] > abs(final_std - VARIANCE**0.5)
    assert (final_mean, final_std) == pytest.approx((MEAN, VARIANCE**0.5), rel=0.02)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_matches_the_closed_form_to_rounding(schedule):
    process = schedule_of(schedule)
    mean, std = closed_form(process, process.timesteps(20), partial(ddim_noise, 0))
    exact, x = (
        gaussian(MEAN, VARIANCE).denoiser(process),
        torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1),
    )
    start_mean = process.alpha_bar[-1].sqrt() * MEAN
    start_std = (process.alpha_bar[-1] * VARIANCE + 1 - process.alpha_bar[-1]).sqrt()
    # an affine map of its start
    x = ddim(exact, process, start_mean + start_std * x, num_steps=20).flatten()
    torch.testing.assert_close(x[0].item(), mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((x[1] - x[0]).item(), std, rtol=1e-9, atol=0)


@options("schedule")
@options("sampler")
def test_samples_have_the_distribution_of_a_mixture(sampler, schedule):
    process = schedule_of(schedule)
    x = run(
        build("sampler", sampler), Mixture(), process, num=10_000, num_steps=200, generator=seeded()
    )
    assert (
        kstest(
            x.flatten().numpy(), lambda values: Mixture().cdf(torch.from_numpy(values)).numpy()
        ).statistic
        < 0.02
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@options("sampler")
def test_a_single_image_is_found_in_any_number_of_steps(sampler, num_steps):
    process, image = schedule_of("cosine"), torch.linspace(-1, 1, 12).view(1, 3, 2, 2)
    noise = torch.randn(4, 3, 2, 2, generator=seeded())
    x = build("sampler", sampler)(
        lambda x, t: image.expand_as(x), process, noise, num_steps=num_steps
    )
    torch.testing.assert_close(x, image.expand_as(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make_schedule", [linear, cosine])
def test_convergence_orders_on_an_interior_range(make_schedule):
    process, data = make_schedule(100_000), Mixture(stds=(0.2, 0.3))
    denoise, x = data.denoiser(process), data.sample(process, 90_000, 50)

    def solve(method, num_steps):
        times = [90_000 - i * 80_000 // num_steps for i in range(num_steps + 1)]
        return method(denoise, process, x, timesteps=times)

    counts, reference = (40, 80, 160, 320), solve(heun, 4000)
    for method, order in ((ddim, 1), (heun, 2), (dpm_solver, 2)):
        errors = [(solve(method, num) - reference).square().mean().sqrt().item() for num in counts]
        slope, _ = np.polyfit(np.log(counts), np.log(errors), 1)
        assert -slope == pytest.approx(order, abs=0.15), method


@options("sampler")
def test_timesteps_are_the_grid_that_num_steps_stands_for(sampler):
    process, sampler = schedule_of("linear"), build("sampler", sampler)
    asked = []

    def denoise(x, t):
        assert t.dtype == torch.long
        assert (t == t[0]).all()
        assert t.shape == (3,)
        asked.append(int(t[0]))
        return x.tanh()

    x = torch.randn(3, 1, 2, 2, generator=seeded())
    by_number = sampler(denoise, process, x, num_steps=7, generator=seeded())
    assert set(asked) == set(process.timesteps(7)) - {0}
    by_times = sampler(denoise, process, x, timesteps=process.timesteps(7), generator=seeded())
    assert torch.equal(by_number, by_times)
    asked.clear()
    sampler(denoise, process, x, timesteps=[500, 300, 100])
    assert {500, 300} <= set(asked) <= {500, 300, 100}


@options("sampler")
def test_an_image_depends_on_its_own_generator_alone(sampler):
    process, sampler, x = (
        schedule_of("linear", 100),
        build("sampler", sampler, T=100),
        torch.randn(3, 2, 4, 4),
    )

    def sample(images, seeds):
        return sampler(
            lambda x, t: 0.5 * x.tanh(), process, images, num_steps=10, generator=generators(seeds)
        )

    together = sample(x, [5, 6, 7])
    for i, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(sample(x[[i]], [seed]), together[[i]], rtol=0, atol=1e-6)


def test_ddim_with_eta_1_is_the_ddpm_posterior():
    for process, num_steps in ((linear(), 1000), (cosine(), 20)):
        samples = [
            run(method, Mixture(), process, num=50, num_steps=num_steps, generator=seeded())
            for method in (partial(ddim, eta=1.0), partial(ddpm, variance="small"))
        ]
        torch.testing.assert_close(*samples, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "times", [range(1000, -1, -1), (1000, 999, 700, 650, 12, 1, 0)], ids=["all", "some"]
)
@pytest.mark.parametrize("variance", ["large", "small"])
def test_ddpm_matches_diffusers(variance, times):
    process, x = linear(), torch.randn(2, 1, 4, 4, generator=seeded(1))
    peer = peer_scheduler(
        "DDPMScheduler", process, variance_type=f"fixed_{variance}", clip_sample=False
    )
    peer.set_timesteps(timesteps=[t - 1 for t in times if t > 0])
    theirs = peer_run(peer, lambda x, t: x.tanh(), x, generator=seeded())
    mine = ddpm(
        lambda x, t: x.tanh(), process, x, variance=variance, timesteps=times, generator=seeded()
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_steps", [1, 50, 1000])
def test_ddim_matches_diffusers(num_steps, eta):
    process, x = cosine(), torch.randn(2, 1, 4, 4, generator=seeded(1))
    peer = peer_scheduler("DDIMScheduler", process, timestep_spacing="trailing", clip_sample=False)
    peer.set_timesteps(num_steps)
    theirs = peer_run(peer, lambda x, t: x.tanh(), x, eta=eta, generator=seeded())
    mine = ddim(lambda x, t: x.tanh(), process, x, num_steps=num_steps, eta=eta, generator=seeded())
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 20, 100])
def test_dpm_solver_matches_diffusers(num_steps):
    process, x = linear(), torch.randn(2, 1, 4, 4, generator=seeded(1))
    peer = peer_scheduler(
        "DPMSolverMultistepScheduler",
        process,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    assert (peer.config.algorithm_type, peer.config.solver_order) == ("dpmsolver++", 2)
    assert peer.config.solver_type == "midpoint"
    peer.set_timesteps(num_steps)
    theirs = peer_run(peer, lambda x, t: 0.5 * x.tanh(), x)
    mine = dpm_solver(lambda x, t: 0.5 * x.tanh(), process, x, num_steps=num_steps)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [5, 50])
@options("sampler")
def test_noise_prediction_of_the_cosine_schedule_stays_finite_when_clipped(sampler, num_steps):
    """1 / signal_T is 20,291: a wrong eps there is a huge x0, unless it is clipped."""
    process, shape = cosine(), (4, 1, 8, 8)
    assert math.isclose(1 / process.alpha_bar[-1].sqrt(), 20291, rel_tol=1e-4)

    def denoise(x, t):
        output = torch.randn(shape, generator=seeded(int(t[0])))
        return Epsilon().to_x0(output, x, *process.scales(t)).clamp(-1, 1)

    noise = torch.randn(shape, generator=seeded())
    x = build("sampler", sampler)(denoise, process, noise, num_steps=num_steps, generator=seeded())
    assert x.abs().max() <= 1 + 1e-5


@options("sampler")
def test_bad_times_are_refused(sampler):
    sampler, process, x = (
        build("sampler", sampler, T=100),
        schedule_of("linear", 100),
        torch.zeros(1, 1, 1, 1),
    )
    for times in ([], [5], [101, 50, 0], [50, -1], [50, 50, 0], [10, 50, 0], [100, 40, 60, 0]):
        with pytest.raises(ConfigError, match="^timesteps="):
            sampler(lambda x, t: x, process, x, timesteps=times)
    for num_steps in (0, 101):
        with pytest.raises(ConfigError, match=f"^num_steps={num_steps}"):
            sampler(lambda x, t: x, process, x, num_steps=num_steps)


@pytest.mark.parametrize(
    ("sampler", "setting"),
    [
        (ddim, {"eta": -0.1}),
        (ddim, {"eta": 1.1}),
        (ddim, {"eta": float("nan")}),
        (ddpm, {"variance": "medium"}),
    ],
)
def test_bad_settings_are_refused_by_name(sampler, setting):
    with pytest.raises(ConfigError, match=f"^{next(iter(setting))}="):
        sampler(lambda x, t: x, linear(100), torch.zeros(1, 1, 1, 1), num_steps=10, **setting)
