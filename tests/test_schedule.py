"""The forward process: 50-digit arithmetic, Bayes' rule, simulation, diffusers.

For every conf/schedule.
"""

from itertools import pairwise

import mpmath as mp
import pytest
import torch
from diffusers import DDPMScheduler
from hydra.utils import get_method
from omegaconf import OmegaConf
from support import CONF, options, schedule_of, seeded

from src.errors import ConfigError
from src.schedule.base import NoiseSchedule

STORED, CAST = 1e-12, 2e-7  # allowed relative errors, float64 and after the cast to float32


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mp.workdps(50):
        yield


def by_formula(option, T):
    """Betas of the papers in 50 digits; None for a schedule that has no formula here."""
    start, end, largest, offset = map(mp.mpf, (1e-4, 0.02, 0.999, 0.008))
    grid = [mp.mpf(i) / max(T - 1, 1) for i in range(T)]
    if option == "cosine":
        f = [mp.cos((mp.mpf(i) / T + offset) / (1 + offset) * mp.pi / 2) ** 2 for i in range(T + 1)]
        return [min(1 - after / before, largest) for before, after in pairwise(f)]
    shapes = {
        "linear": lambda u: start + (end - start) * u,
        "quadratic": lambda u: (mp.sqrt(start) + (mp.sqrt(end) - mp.sqrt(start)) * u) ** 2,
        "sigmoid": lambda u: start + (end - start) / (1 + mp.exp(6 - 12 * u)),
    }
    return [min(shapes[option](u) * 1000 / T, largest) for u in grid] if option in shapes else None


def products(betas):
    alpha_bar = [mp.mpf(1)]
    for beta in betas:
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
    return alpha_bar


def relative_error(values, reference):
    pairs = zip(values.double().flatten().tolist(), reference, strict=True)
    return float(
        max(abs(mp.mpf(value) - exact) / abs(exact) for value, exact in pairs if exact != 0)
    )


def coefficients(schedule, t, s, dtype):
    """Posterior coefficients of x_0 and x_t, and the variance, read off the public method."""
    one = torch.ones(len(t), 1, 1, 1, dtype=dtype)
    of_x0, variance = schedule.posterior(one, 0 * one, t, s)
    return of_x0, schedule.posterior(0 * one, one, t, s)[0], variance


@pytest.mark.parametrize("T", [1, 2, 10, 50, 1000, 4000])
@options("schedule")
def test_is_a_schedule(schedule, T):
    process = schedule_of(schedule, T)
    assert process.num_timesteps == T
    assert process.alpha_bar.shape == (T + 1,)
    assert process.alpha_bar[0] == 1
    assert (process.alpha_bar.diff() < 0).all()
    assert process.alpha_bar[-1] > 0
    betas = torch.tensor([process.step_variance(t, t - 1) for t in range(1, T + 1)])
    assert ((betas > 0) & (betas < 1)).all()


@options("schedule")
def test_shorter_chains_still_end_in_noise(schedule):
    assert all(schedule_of(schedule, T).alpha_bar[-1] < 0.02 for T in (20, 100, 200, 1000, 4000))


@options("schedule")
def test_tables_survive_every_cast(schedule):
    process, exact = schedule_of(schedule), schedule_of(schedule)
    for cast in (process.half(), process.to(torch.bfloat16), process.float(), process.to("cpu")):
        assert cast.alpha_bar.dtype == torch.float64
        assert torch.equal(cast.alpha_bar, exact.alpha_bar)
    assert not list(process.parameters()) + list(process.buffers())
    assert all(scale.dtype == torch.float32 for scale in process.scales(torch.tensor([3])))


@pytest.mark.parametrize("T", [1, 20, 1000, 4000])
@options("schedule")
def test_tables_match_fifty_digits(schedule, T):
    process = schedule_of(schedule, T)
    exact = products(by_formula(schedule, T) or map(mp.mpf, process.betas[1:].tolist()))
    noise = [1 - a for a in exact]
    assert relative_error(process.alpha_bar, exact) < STORED
    assert relative_error(process.sigma_squared, noise) < STORED
    for scale, squares in zip(process.scales(torch.arange(T + 1)), (exact, noise), strict=True):
        assert relative_error(scale, map(mp.sqrt, squares)) < CAST
    assert relative_error(process.alpha_bar.float(), exact) < CAST
    assert relative_error(process.sigma_squared.float(), noise) < CAST


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("T", [20, 1000, 4000])
@options("schedule")
def test_posterior_matches_fifty_digits(schedule, T, stride):
    process = schedule_of(schedule, T)
    t = torch.arange(stride, T + 1, stride)
    exact = products(by_formula(schedule, T) or map(mp.mpf, process.betas[1:].tolist()))
    pairs = [(exact[i], exact[i - stride]) for i in t.tolist()]
    reference = (
        [mp.sqrt(b) * (1 - a / b) / (1 - a) for a, b in pairs],
        [mp.sqrt(a / b) * (1 - b) / (1 - a) for a, b in pairs],
        [(1 - a / b) * (1 - b) / (1 - a) for a, b in pairs],
    )
    for dtype, allowed in ((torch.float64, STORED), (torch.float32, CAST)):
        for values, correct in zip(
            coefficients(process, t, t - stride, dtype), reference, strict=True
        ):
            assert values.dtype == dtype
            assert relative_error(values, correct) < allowed


@pytest.mark.parametrize(
    "ends", [{"beta_start": 1e-4, "beta_end": 0.02}, {"beta_start": 1e-3, "beta_end": 0.05}]
)
@pytest.mark.parametrize(
    ("schedule", "name"),
    [("linear", "linear"), ("quadratic", "scaled_linear"), ("sigmoid", "sigmoid")],
)
def test_betas_match_diffusers(schedule, name, ends):
    peer = DDPMScheduler(1000, beta_schedule=name, **ends)
    torch.testing.assert_close(
        schedule_of(schedule, **ends).betas[1:].float(), peer.betas, rtol=1e-5, atol=2e-7
    )


@pytest.mark.parametrize("offset", [0.0, 0.008, 0.1])
def test_cosine_is_the_squared_cosine(offset):
    alpha_bar = schedule_of("cosine", 200, offset=offset, max_beta=0.9).alpha_bar
    f = ((torch.linspace(0, 1, 201).double() + offset) / (1 + offset) * torch.pi / 2).cos().square()
    torch.testing.assert_close(alpha_bar[:199], (f / f[0])[:199], rtol=1e-5, atol=0)
    torch.testing.assert_close(alpha_bar[200], 0.1 * alpha_bar[199])
    peer = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(
        schedule_of("cosine").betas[1:].float(), peer.betas, rtol=1e-5, atol=2e-7
    )


@options("schedule")
def test_single_steps_compose_to_the_marginal(schedule):
    process = schedule_of(schedule, 50)
    x = torch.full((40_000, 1, 1, 1), 0.7, dtype=torch.float64)
    mean, variance, own = 0.7, 0.0, seeded()
    for t in range(1, 51):
        beta = process.step_variance(t, t - 1)
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
        x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(
            x.shape, generator=own, dtype=torch.float64
        )
        signal, sigma = process.scales(torch.tensor([t]))
        assert mean == pytest.approx(0.7 * signal.item(), rel=1e-6)
        assert variance == pytest.approx(sigma.item() ** 2, rel=1e-6)
        if t in (1, 10, 50):
            jump = process.add_noise(
                torch.full_like(x, 0.7),
                torch.randn(x.shape, generator=own),
                torch.full((40_000,), t),
            )
            for draws in (x, jump):
                assert abs(draws.mean() - mean) < 5 * (variance / 40_000) ** 0.5
                assert draws.var() == pytest.approx(variance, rel=5 * (2 / 40_000) ** 0.5)


@options("schedule")
def test_add_noise_and_scales_are_per_image(schedule):
    process, t = schedule_of(schedule), torch.tensor([0, 1, 500, 1000])
    x0, eps = torch.randn(2, 4, 3, 2, 2, generator=seeded())
    x_t = process.add_noise(x0, eps, t)
    assert torch.equal(x_t[0], x0[0])
    for i, time in enumerate(t.tolist()):
        by_hand = (
            process.alpha_bar[time].sqrt() * x0[i] + (1 - process.alpha_bar[time]).sqrt() * eps[i]
        )
        torch.testing.assert_close(x_t[i], by_hand.float())
    log_snr = process.log_snr(t)
    torch.testing.assert_close(log_snr.exp(), process.alpha_bar[t] / (1 - process.alpha_bar[t]))
    assert (process.log_snr(torch.arange(1001)).diff() < 0).all()


@pytest.mark.parametrize(
    ("t", "s"), [(2, 1), (500, 499), (1000, 999), (300, 100), (1000, 10), (900, 1)]
)
@options("schedule")
def test_posterior_is_bayes_rule(schedule, t, s):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0).

    Normalised on a grid, without any formula.
    """
    process, x0, x_t = schedule_of(schedule), 0.4, -0.3
    mean, variance = process.posterior(
        *(torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x0, x_t)),
        torch.tensor([t]),
        torch.tensor([s]),
    )
    center, spread = mean.item(), variance.item() ** 0.5
    x_s = torch.linspace(center - 12 * spread, center + 12 * spread, 4001, dtype=torch.float64)
    kept = process.alpha_bar[t] / process.alpha_bar[s]
    log_density = -((x_t - kept.sqrt() * x_s) ** 2) / (2 * (1 - kept))
    log_density -= (x_s - process.alpha_bar[s].sqrt() * x0) ** 2 / (2 * (1 - process.alpha_bar[s]))
    density = log_density.softmax(0)
    true_mean = (density * x_s).sum()
    assert center == pytest.approx(true_mean.item(), abs=1e-7 * spread + 1e-9)
    assert variance.item() == pytest.approx(
        (density * (x_s - true_mean) ** 2).sum().item(), rel=1e-6
    )


@options("schedule")
def test_posterior_at_the_first_step_is_x0(schedule):
    process = schedule_of(schedule)
    x0, x_t = torch.randn(2, 3, 1, 4, 4, generator=seeded())
    for t, s in (
        (torch.ones(3, dtype=torch.long), None),
        (torch.tensor([1000]), torch.tensor([0])),
    ):
        mean, variance = process.posterior(x0, x_t, t, s)
        torch.testing.assert_close(mean, x0)
        assert (variance == 0).all()


def test_timesteps_are_evenly_spaced():
    for T in (1, 2, 7, 50, 1000, 4000):
        process = schedule_of("linear", T)
        for num_steps in {1, 2, 3, T // 3, T // 2 + 1, T - 1, T} & set(range(1, T + 1)):
            times = process.timesteps(num_steps)
            gaps = {t - s for t, s in pairwise(times)}
            assert (times[0], times[-1], len(times)) == (T, 0, num_steps + 1)
            assert min(gaps) >= 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("num_steps", [-1, 0, 51, 1000])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ConfigError, match=f"num_steps={num_steps}"):
        schedule_of("linear", 50).timesteps(num_steps)


BAD = {
    "num_timesteps": [0, -1, 10.0, "10"],
    "beta_start": [0, -1e-4, 1.0, float("nan")],
    "beta_end": [1e-5, 1.0, 2.0, float("nan")],
    "offset": [-0.1, float("nan")],
    "max_beta": [0.0, 1.0, 1.5, float("nan")],
}


@options("schedule")
def test_bad_settings_are_refused_by_name(schedule):
    recipe = OmegaConf.load(CONF / "schedule" / f"{schedule}.yaml")
    for setting in set(recipe) - {"_target_"}:
        for value in BAD[setting]:
            with pytest.raises(ConfigError, match=f"^{setting}={value}: "):
                get_method(recipe._target_)(**{setting: value})


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_bad_betas_are_refused_with_the_name_of_the_schedule(bad):
    with pytest.raises(ConfigError, match="schedule mine: beta_2="):
        NoiseSchedule(torch.tensor([0.1, bad, 0.1], dtype=torch.float64), name="mine")


@pytest.mark.parametrize("betas", [[0.9999] * 100, [0.1, 1e-17]], ids=["underflow", "no decrease"])
def test_alpha_bar_that_does_not_decrease_is_refused(betas):
    with pytest.raises(ConfigError, match="schedule mine: alpha_bar"):
        NoiseSchedule(torch.tensor(betas, dtype=torch.float64), name="mine")
