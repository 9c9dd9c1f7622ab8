"""The Fréchet distance: closed forms, independent implementations; moments of the data."""

import math

import pytest
import torch
from support import expected_bias
from torch import nn

from src.metric.frechet import Moments, coupling, distance
from src.noise import generator

DIM = 12


def features(key, num, dim=DIM, mean=0.0):
    """Correlated features, another distribution for every key."""
    random = generator("test_metric", key)
    mixing = torch.randn(dim, dim, generator=random, dtype=torch.float64) / math.sqrt(dim)
    return torch.randn(num, dim, generator=random, dtype=torch.float64) @ mixing + mean


def gaussian(key, dim=DIM, num=100):
    x = features(key, num, dim)
    return x.mean(0), x.T.cov()


def frechet_distance(mean_1, cov_1, mean_2, cov_2):
    return distance(Moments(mean_1, cov_1), Moments(mean_2, cov_2))


def between(real, fake):
    return distance(Moments.of(real), Moments.of(fake))


def exact(real, fake):
    """Oracle from the data, right for any rank.

    tr (S_1 S_2)^(1/2) is the nuclear norm of their product.
    """
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (real, fake))
    traces = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return (real.mean(0) - fake.mean(0)).square().sum() + traces


def test_commuting_covariances_have_a_closed_form():
    a, b = torch.rand(2, DIM, generator=generator("diagonal"), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(features("rotation", DIM))
    mean = torch.arange(DIM, dtype=torch.float64)
    result = frechet_distance(mean, rotation * a @ rotation.T, mean + 2, rotation * b @ rotation.T)
    assert float(result) == pytest.approx(
        4 * DIM + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-9
    )


def test_general_covariances_against_the_eigenvalues_of_the_product():
    (mean_1, cov_1), (mean_2, cov_2) = gaussian("a"), gaussian("b")
    root = torch.linalg.eigvals(cov_1 @ cov_2).sqrt().real.sum()
    expected = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root
    torch.testing.assert_close(
        frechet_distance(mean_1, cov_1, mean_2, cov_2), expected, rtol=1e-9, atol=0
    )


def test_one_dimension():
    def one(*value):
        return torch.tensor(value, dtype=torch.float64)

    result = frechet_distance(one(1), one(4).view(1, 1), one(3), one(9).view(1, 1))
    assert float(result) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_symmetric_and_zero_for_equal():
    a, b = gaussian("a"), gaussian("b")
    torch.testing.assert_close(
        frechet_distance(*a, *b), frechet_distance(*b, *a), rtol=1e-9, atol=0
    )
    for key in range(20):
        same = gaussian(key)
        assert 0 <= frechet_distance(*same, *same) < 1e-12


def test_the_coupling_of_two_covariances_serves_their_distance():
    a, b = Moments.of(features("a", 40)), Moments.of(features("b", 30))
    scales, vectors = coupling(a, b)
    root = a.root.T @ b.cov @ a.root
    torch.testing.assert_close(vectors * scales.square() @ vectors.T, root, rtol=1e-9, atol=1e-12)
    assert distance(a, b, scales) == distance(a, b)


def test_translation_adds_its_square():
    x = features("a", 50)
    assert float(between(x, x + 3)) == pytest.approx(9 * DIM, rel=1e-9)


@pytest.mark.parametrize(("num_real", "num_fake"), [(5, 5), (5, 40), (40, 5), (40, 30)])
def test_fewer_images_than_features(num_real, num_fake):
    real, fake = features("a", num_real, dim=32), features("b", num_fake, dim=32, mean=0.5)
    assert Moments.of(real).root.shape == (32, min(num_real - 1, 32))
    torch.testing.assert_close(between(real, fake), exact(real, fake), rtol=1e-6, atol=0)


def test_constant_images_have_no_covariance():
    real, constant = features("a", 50), torch.ones(10, DIM)
    expected = (real.mean(0) - 1).square().sum() + real.T.cov().trace()
    for pair in ((real, constant), (constant, real)):
        torch.testing.assert_close(between(*pair), expected, rtol=1e-9, atol=0)
    assert float(between(constant, constant)) == 0


def test_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    real, fake = features("a", 300).float(), features("b", 200, mean=0.3).float()
    network = nn.Identity()
    network.num_features = DIM
    oracle = FrechetInceptionDistance(feature=network)
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    assert float(between(real, fake)) == pytest.approx(float(oracle.compute()), rel=1e-6)


def test_moments_are_those_of_the_data_over_several_chunks():
    x = features("a", 10_000).float()
    moments = Moments.of(x)
    torch.testing.assert_close(moments.mean, x.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.cov, x.double().T.cov(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moments.root @ moments.root.T, moments.cov, rtol=1e-10, atol=1e-12)
    assert moments.n == 10_000
    assert moments.root is moments.root  # decomposed once


def test_large_mean_does_not_cancel():
    real, fake = features("a", 400), features("b", 400)
    torch.testing.assert_close(
        between(real + 1e5, fake + 1e5), between(real, fake), rtol=1e-8, atol=0
    )


def test_autocast_does_not_round():
    real, fake = features("a", 50).float(), features("b", 50).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = between(real, fake)
    assert result == between(real, fake)


def test_bias_of_a_finite_sample_is_predicted():
    """E[d^2] of two samples of one Gaussian: the floor below which no model gets."""
    num_real, num_fake, dim = 2000, 1000, 24
    scale = torch.logspace(0, -1, dim, dtype=torch.float64)
    random = generator("bias")

    def draw(num):
        return torch.randn(num, dim, generator=random, dtype=torch.float64) * scale

    found = torch.stack([between(draw(num_real), draw(num_fake)) for _ in range(200)])
    expected = expected_bias(scale.square().diag(), num_real, num_fake)
    assert float(found.mean()) == pytest.approx(expected, rel=0.03)  # standard error 0.8 %


def test_bias_ignores_directions_without_variance_and_rotations():
    values = torch.tensor([2.0, 0.5, 0, 0], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(features("rotation", 4, dim=4))
    # sum_ij l_i l_j / (2 (l_i + l_j)) over the two that are left
    pairs = 2 / 4 + 0.5 / 4 + 2 * (2 * 0.5 / (2 * 2.5))
    expected = (1 / 50 + 1 / 10) * (1.25 * 2.5 + pairs)
    for cov in (values.diag(), rotation * values @ rotation.T, values[:2].diag()):
        assert expected_bias(cov, 50, 10) == pytest.approx(expected, rel=1e-12)
    assert expected_bias(torch.zeros(3, 3), 50, 10) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_is_refused(bad):
    x = features("b", 20)
    x[3, 4] = bad
    with pytest.raises(ValueError, match="features hold NaN or infinite"):
        Moments.of(x)


def test_misuse_says_what_is_wrong():
    with pytest.raises(ValueError, match="2 or more images, it got 1"):
        Moments.of(features("b", 1))
