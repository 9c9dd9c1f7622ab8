"""Schedules over the optimiser steps: the penalty of the KL term, and the learning rate."""

import math

import pytest
import torch
from support import build, options

from src.beta import Capacity, Constant, Cyclical, Linear
from src.errors import ConfigError
from src.lr_schedule import constant, cosine

KL = torch.tensor([1.0, 2.0, 6.0])


@options("beta")
def test_penalty_is_per_image_differentiable_and_never_a_reward(beta):
    penalty = build("beta", beta)
    for step in (0, 1, 500, 10**6, None):
        kl = KL.clone().requires_grad_()
        value = penalty(kl, step)
        assert value.shape == KL.shape
        assert (value.isfinite() & (value >= 0)).all()
        value.mean().backward()
        assert kl.grad.isfinite().all()


def weights(beta, steps):
    factors = [beta(KL, step) / KL for step in steps]
    assert all(torch.allclose(factor, factor[0]) for factor in factors)
    return [float(factor[0]) for factor in factors]


def test_constant():
    assert weights(Constant(4.0), [0, 10, 10**6, None]) == [4.0] * 4


def test_linear_rises_to_its_value_and_stays():
    beta = Linear(value=2.0, warmup_steps=10, start=0.5)
    assert weights(beta, [0, 5, 10, 11, 10**6, None]) == pytest.approx([0.5, 1.25, 2, 2, 2, 2])


def test_cyclical_rises_again_and_again():
    beta = Cyclical(value=2.0, period=10, ratio=0.5)
    cycle = pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2])
    assert weights(beta, range(10)) == cycle
    assert weights(beta, range(50, 60)) == cycle
    assert weights(beta, [None]) == [2.0]
    assert weights(Cyclical(value=2.0, period=10, ratio=1.0), [0, 5, 9]) == pytest.approx(
        [0, 1, 1.8]
    )


def test_capacity_pulls_the_mean_kl_to_the_capacity_from_both_sides():
    beta = Capacity(value=10.0, max_capacity=5.0, steps=100)
    for step, capacity in ((0, 0), (50, 2.5), (100, 5), (10**6, 5), (None, 5)):
        torch.testing.assert_close(beta(KL, step), torch.full_like(KL, 10 * abs(3 - capacity)))
    for capacity_step, direction in ((0, 1.0), (None, -1.0)):
        kl = KL.clone().requires_grad_()
        beta(kl, capacity_step).mean().backward()
        torch.testing.assert_close(kl.grad, torch.full_like(kl, direction * 10 / 3))


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (Constant, {"value": -1.0}),
        (Linear, {"value": -1.0}),
        (Linear, {"start": -0.1}),
        (Linear, {"warmup_steps": 0}),
        (Cyclical, {"value": float("nan")}),
        (Cyclical, {"period": 0}),
        (Cyclical, {"ratio": 0.0}),
        (Cyclical, {"ratio": 1.1}),
        (Capacity, {"value": -1.0}),
        (Capacity, {"max_capacity": -1.0}),
        (Capacity, {"steps": 0}),
    ],
)
def test_bad_beta_is_refused_by_name(make, setting):
    with pytest.raises(ConfigError, match=f"^{next(iter(setting))}="):
        make(**setting)


def rates(make, num, **settings):
    """The learning rate of each of ``num`` optimiser steps, the optimiser's own being 0.2."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule, seen = make(optimizer, **settings), []
    for _ in range(num):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(seen, dtype=torch.float64)


@options("lr_schedule")
def test_rate_warms_up_to_the_optimizers_own_and_never_exceeds_it(lr_schedule):
    seen = rates(build("lr_schedule", lr_schedule, warmup_steps=10), 100, total_steps=100)
    torch.testing.assert_close(seen[:10], 0.2 * torch.arange(1, 11).double() / 10)
    assert ((seen >= 0) & (seen <= 0.2 + 1e-12)).all()
    assert rates(build("lr_schedule", lr_schedule, warmup_steps=0), 1, total_steps=100)[0] == 0.2


def test_constant_rate_stays_for_ever():
    torch.testing.assert_close(
        rates(constant, 50, total_steps=math.inf), torch.full((50,), 0.2).double()
    )
    assert (rates(constant, 50, total_steps=20, warmup_steps=5)[4:] == 0.2).all()


def test_cosine_rate_is_half_a_wave_after_the_warmup():
    seen = rates(cosine, 121, total_steps=110, warmup_steps=10, final=0.1)
    progress = torch.arange(101).double() / 100
    torch.testing.assert_close(
        seen[10:111], 0.2 * (0.1 + 0.9 * (torch.pi * progress / 2).cos().square())
    )
    torch.testing.assert_close(seen[110:], torch.full((11,), 0.02).double())
    assert rates(cosine, 101, total_steps=100)[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("total_steps", [math.inf, math.nan])
def test_cosine_without_an_end_is_refused(total_steps):
    with pytest.raises(ConfigError, match="trainer.max_steps"):
        rates(cosine, 1, total_steps=total_steps)


@pytest.mark.parametrize(
    ("make", "setting"), [(constant, "warmup_steps"), (cosine, "warmup_steps"), (cosine, "final")]
)
def test_bad_rate_settings_are_refused_by_name(make, setting):
    with pytest.raises(ConfigError, match=f"^{setting}=-1"):
        rates(make, 1, total_steps=10, **{setting: -1})
