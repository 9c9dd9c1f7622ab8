"""Clipping and skipping on the device: as torch does it, with no pass and no wait of their own."""

import pytest
import torch
from torch import nn

from src.training.gradients import Gradients

OPTIMIZERS = {
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
    "foreach": lambda weights: torch.optim.AdamW(weights, lr=0.1, foreach=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.1),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True),
}


def weights():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,), ())]


def give_gradients(parameters, step, size):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [0.01, 100.0], ids=["within", "beyond"])
def test_clipping_is_that_of_torch(name, size):
    ours, theirs = weights(), weights()
    optimizer, reference = OPTIMIZERS[name](ours), OPTIMIZERS[name](theirs)
    gradients = Gradients(optimizer)
    for step in range(4):
        for parameters in (ours, theirs):
            give_gradients(parameters, step, size)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        torch.testing.assert_close(gradients.norm(), norm)
        gradients.clip(1.0)
        for each in (optimizer, reference):
            each.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [None, 0, 0.0])
def test_no_limit_changes_nothing(limit):
    parameters = weights()
    gradients = Gradients(OPTIMIZERS["foreach"](parameters))
    give_gradients(parameters, 0, 100.0)
    before = [parameter.grad.clone() for parameter in parameters]
    gradients.clip(limit)
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("first", [0, 1])
def test_a_fused_optimiser_skips_a_bad_step_and_nothing_else(first):
    ours, theirs = weights(), weights()
    optimizer, reference = OPTIMIZERS["fused"](ours), OPTIMIZERS["fused"](theirs)
    gradients = Gradients(optimizer)
    assert gradients.fused
    for step in range(5):
        give_gradients(ours, step, 1.0)
        bad = step in (first, 2)
        if bad:
            ours[1].grad[2] = float("inf")
        else:
            give_gradients(theirs, step, 1.0)
            reference.step()
        gradients.skip_if(torch.tensor(float(bad)))
        gradients.clip(1e6)
        optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    for own, other in zip(ours, theirs, strict=True):
        for key, value in reference.state[other].items():
            torch.testing.assert_close(optimizer.state[own][key], value)


def test_the_norm_is_of_the_gradients_that_are_there():
    """Also where nothing clips by it, as with clipping by value."""
    parameters = weights()
    gradients = Gradients(OPTIMIZERS["fused"](parameters))
    for step in range(3):
        gradients.remove()
        give_gradients(parameters, step, 10.0**step)
        expected = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.testing.assert_close(gradients.norm(), expected)


def test_without_gradients_there_is_no_step():
    parameters = weights()
    optimizer = OPTIMIZERS["rmsprop"](parameters)
    gradients = Gradients(optimizer)
    assert not gradients.fused
    give_gradients(parameters, 0, float("nan"))
    assert gradients.norm().isnan()
    gradients.remove()
    gradients.clip(1.0)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_a_resumed_optimiser_that_was_not_fused_stays_so():
    first = OPTIMIZERS["foreach"](weights())
    second = OPTIMIZERS["fused"](weights())
    second.load_state_dict(first.state_dict())
    assert not Gradients(second).fused
