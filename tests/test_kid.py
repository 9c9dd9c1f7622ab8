"""The kernel distance against the definition, torch-fidelity and its spread when repeated."""

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from src.errors import ConfigError
from src.metric import base
from src.metric.base import Reference, Samples
from src.metric.kid import Kid, kernel_distance
from src.noise import generator


def draws(key, num, dim=6):
    return torch.randn(num, dim, generator=generator("test_kid", key))


def kernel(x, y):
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def test_is_the_u_statistic_of_unequal_sets():
    x, y = draws("x", 30), draws("y", 20) + 0.3
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    expected = (
        (xx.sum() - xx.trace()) / (30 * 29) + (yy.sum() - yy.trace()) / (20 * 19) - 2 * xy.mean()
    )
    assert kernel_distance(x, y)[0] == pytest.approx(float(expected), rel=1e-12)


def test_error_is_that_of_centred_matrices():
    n, m = 7, 5
    x, y = draws("x", n), draws("y", m) + 1

    def u_centred(k):
        k, n = k - k.diag().diag(), len(k)
        rows = k.sum(dim=1)
        centred = k - (rows + rows[:, None]) / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        return (centred - centred.diag().diag()).square().sum() / (n * (n - 3))

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    between = (xy - xy.mean(0) - xy.mean(1, keepdim=True) + xy.mean()).square().sum() / (
        (n - 1) * (m - 1)
    )
    second_order = (
        2 * u_centred(xx) / (n * (n - 1))
        + 2 * u_centred(yy) / (m * (m - 1))
        + 4 * between / (n * m)
    )
    real = (xx.sum(1) - xx.diag()) / (n - 1) - xy.mean(1)
    fake = (yy.sum(1) - yy.diag()) / (m - 1) - xy.mean(0)
    first_order = 4 * real.var() / n + 4 * fake.var() / m
    assert first_order > 2 * second_order  # so that both enter
    assert kernel_distance(x, y)[1] ** 2 == pytest.approx(
        float(first_order - second_order), rel=1e-9
    )


def test_equals_torch_fidelity():
    x, y = draws("x", 200).double(), draws("y", 200).double() * 1.2
    oracle = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=200, verbose=False)
    assert kernel_distance(x, y)[0] == pytest.approx(
        oracle["kernel_inception_distance_mean"], rel=1e-9
    )


def test_blocks_change_nothing(monkeypatch):
    x, y = draws("x", 53), draws("y", 41)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(base, "BLOCK", 500)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)


def moment_tensors(mean, variance):
    """E x, E xx, E xxx of N(mean, variance I)."""
    eye = variance * torch.eye(len(mean), dtype=torch.float64)
    mixed = torch.einsum("ij,k->ijk", eye, mean)
    third = (
        torch.einsum("i,j,k->ijk", mean, mean, mean)
        + mixed
        + mixed.permute(0, 2, 1)
        + mixed.permute(2, 1, 0)
    )
    return mean, torch.outer(mean, mean) + eye, third


def true_distance(scale, shift, dim):
    """(x.y / d + 1)^3 is an inner product of the tensors 1, x, xx, xxx with binomial weights."""
    zero = torch.zeros(dim, dtype=torch.float64)
    pairs = zip(moment_tensors(zero, 1), moment_tensors(zero + shift, scale**2), strict=True)
    terms = zip((3, 3, 1), (1, 2, 3), pairs, strict=True)
    return sum(
        weight / dim**power * float((a - b).square().sum()) for weight, power, (a, b) in terms
    )


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 0.2), (0.7, 0), (1.5, 0), (0, 1)])
@pytest.mark.parametrize(("n", "m"), [(200, 80), (100, 250)])
def test_unbiased_and_error_is_the_spread_over_repetitions(scale, shift, n, m):
    random, num = generator("kid", scale, shift, n), 250
    sets = [torch.randn(n + m, 8, generator=random) for _ in range(num)]
    found = torch.tensor(
        [kernel_distance(x[:n], x[n:] * scale + shift) for x in sets], dtype=torch.float64
    )
    value, error = found.T
    truth, sd = true_distance(scale, shift, 8), float(value.std())
    assert abs(float(value.mean()) - truth) < 4 * sd / num**0.5
    assert float(error.mean()) == pytest.approx(sd, rel=0.2)  # standard error of an sd 4.5 %
    # 0.95 where it is normal
    assert float(((value - truth).abs() < 2 * error).double().mean()) > 0.9


def test_two_constant_images():
    value, error = kernel_distance(torch.full((10, 4), 0.5), torch.full((12, 4), -1.0))
    assert value == pytest.approx((0.25 + 1) ** 3 + (1 + 1) ** 3 - 2 * (-0.5 + 1) ** 3)
    assert error == pytest.approx(0, abs=1e-6)


def test_measure_says_what_it_used():
    real = torch.arange(40.0)[:, None] * torch.ones(3) / 40
    fake = draws("fake", 30, dim=3)
    found = Kid(max_images=10)(Samples(Reference(real), fake))["kid"]
    # a data set may be sorted
    assert (found.value, found.error) == kernel_distance(real[::4], fake[:10])
    assert found.context == {"n_real": 10, "n_fake": 10, "kernel": "(x.y / d + 1)^3"}
    assert type(found.value) is float
    few = Kid()(Samples(Reference(real), fake))["kid"]
    assert (few.context["n_real"], few.context["n_fake"]) == (40, 30)


def test_misuse_says_what_is_wrong():
    with pytest.raises(ValueError, match="needs 4 or more images, it got 20 and 3"):
        kernel_distance(draws("x", 20), draws("y", 3))
    with pytest.raises(ConfigError, match="max_images=3: must be 4 or more"):
        Kid(max_images=3)
