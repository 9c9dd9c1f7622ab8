"""Metrics against closed forms, an independent implementation, and themselves split over ranks."""

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from src.errors import ConfigError
from src.metric.frechet import FrechetDistance, frechet_distance
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


def metric_of(real, fake, **options):
    metric = FrechetDistance(real.shape[1], **options)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def distance(real, fake):
    return metric_of(real, fake).compute()


def exact(real, fake):
    """Oracle from the data, right for any rank: tr (S_1 S_2)^(1/2) is the nuclear norm of their product."""
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (real, fake))
    traces = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return (real.mean(0) - fake.mean(0)).square().sum() + traces


def test_commuting_covariances_have_a_closed_form():
    a, b = torch.rand(2, DIM, generator=generator("diagonal"), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(features("rotation", DIM))
    mean = torch.arange(DIM, dtype=torch.float64)
    result = frechet_distance(mean, rotation * a @ rotation.T, mean + 2, rotation * b @ rotation.T)
    assert float(result) == pytest.approx(4 * DIM + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)


def test_general_covariances_against_the_eigenvalues_of_the_product():
    (mean_1, cov_1), (mean_2, cov_2) = gaussian("a"), gaussian("b")
    root = torch.linalg.eigvals(cov_1 @ cov_2).sqrt().real.sum()
    expected = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root
    torch.testing.assert_close(frechet_distance(mean_1, cov_1, mean_2, cov_2), expected, rtol=1e-9, atol=0)


def test_one_dimension():
    def one(*value):
        return torch.tensor(value, dtype=torch.float64)

    result = frechet_distance(one(1), one(4).view(1, 1), one(3), one(9).view(1, 1))
    assert float(result) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_symmetric_and_zero_for_equal():
    a, b = gaussian("a"), gaussian("b")
    torch.testing.assert_close(frechet_distance(*a, *b), frechet_distance(*b, *a), rtol=1e-9, atol=0)
    assert 0 <= frechet_distance(*a, *a) < 1e-12


def test_translation_adds_its_square():
    x = features("a", 50)
    shifted = distance(x, x + 3)
    assert float(shifted) == pytest.approx(9 * DIM, rel=1e-9)


@pytest.mark.parametrize(("num_real", "num_fake"), [(5, 5), (5, 40), (40, 5), (40, 30)])
def test_fewer_images_than_features(num_real, num_fake):
    real, fake = features("a", num_real, dim=32), features("b", num_fake, dim=32, mean=0.5)
    torch.testing.assert_close(distance(real, fake), exact(real, fake), rtol=1e-6, atol=0)


def test_constant_images_have_no_covariance():
    real, constant = features("a", 50), torch.ones(10, DIM)
    expected = (real.mean(0) - 1).square().sum() + real.T.cov().trace()
    torch.testing.assert_close(distance(real, constant), expected, rtol=1e-9, atol=0)
    assert float(distance(constant, constant)) == 0


def test_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import, and the second rank imports this file

    real, fake = features("a", 300).float(), features("b", 200, mean=0.3).float()
    network = nn.Identity()
    network.num_features = DIM
    oracle = FrechetInceptionDistance(feature=network)
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    assert float(distance(real, fake)) == pytest.approx(float(oracle.compute()), rel=1e-6)


def test_large_mean_does_not_cancel():
    real, fake = features("a", 400), features("b", 400)
    torch.testing.assert_close(distance(real + 1000, fake + 1000), distance(real, fake), rtol=1e-6, atol=0)


def test_bias_of_a_finite_sample_is_predicted():
    """E[FD] of two samples of one Gaussian with eigenvalues l: NUMBERS 5.15, the floor below which no model gets."""
    num_real, num_fake, dim = 4000, 1000, 32
    eigenvalues = torch.logspace(0, -2, dim, dtype=torch.float64)
    pair = (eigenvalues[:, None] * eigenvalues / (2 * (eigenvalues[:, None] + eigenvalues))).sum()
    expected = (1 / num_real + 1 / num_fake) * float(1.25 * eigenvalues.sum() + pair)
    random = generator("bias")
    draws = [
        [
            torch.randn(num, dim, generator=random, dtype=torch.float64) * eigenvalues.sqrt()
            for num in (num_real, num_fake)
        ]
        for _ in range(20)
    ]
    mean = sum(float(distance(real, fake)) for real, fake in draws) / len(draws)
    assert mean == pytest.approx(expected, rel=0.05)


def test_batches_and_shards_add_up():
    real, fake = features("a", 90), features("b", 70)
    whole, left, right = metric_of(real, fake), metric_of(real[:30], fake[:64]), metric_of(real[30:], fake[64:])
    left.update(torch.empty(0, DIM), real=False)  # a rank without a share
    for state in whole.metric_state:
        torch.testing.assert_close(
            getattr(left, state) + getattr(right, state), getattr(whole, state), rtol=1e-12, atol=1e-12
        )
    left.update(real[30:], real=True)
    left.update(fake[64:], real=False)
    torch.testing.assert_close(left.compute(), whole.compute(), rtol=1e-12, atol=0)


def _rank(rank, folder):
    timeout = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    try:
        real, fake = features("a", 90), features("b", 70)
        torch.save(metric_of(real[rank::2], fake[rank::2]).compute(), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    other = mp.get_context("spawn").Process(target=_rank, args=(1, str(tmp_path)))
    other.start()
    _rank(0, str(tmp_path))  # in this process: starting a second one takes seconds
    other.join()
    assert other.exitcode == 0
    expected = distance(features("a", 90), features("b", 70))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-12, atol=0)


def test_reset_keeps_the_real_side_on_request():
    real, fake = features("a", 50), features("b", 50)
    metric = metric_of(real, fake, reset_real=False)
    metric.reset()
    metric.update(fake + 1, real=False)
    torch.testing.assert_close(metric.compute(), distance(real, fake + 1))
    forgetful = metric_of(real, fake)
    forgetful.reset()
    assert forgetful.real_n == 0
    assert forgetful.fake_n == 0


@pytest.mark.parametrize(
    "cast",
    [
        nn.Module.half,
        nn.Module.float,
        lambda metric: metric.half(),
        lambda metric: metric.to(torch.bfloat16),
        lambda metric: metric.set_dtype(torch.float32),
        lambda metric: nn.ModuleList([metric]).to("cpu", torch.float16),
    ],
)
def test_casts_leave_float64(cast):
    real, fake = features("a", 50), features("b", 50)
    metric = metric_of(real, fake)
    cast(metric)
    assert all(state.dtype == torch.float64 for state in metric.metric_state.values())
    assert metric.compute() == distance(real, fake)
    metric.reset()
    assert metric.real_outer.dtype == torch.float64


def test_autocast_does_not_round():
    real, fake = features("a", 50), features("b", 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = distance(real, fake)
    assert result == distance(real, fake)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_is_refused(bad):
    mean, cov = gaussian("a")
    with pytest.raises(ValueError, match="mean_2 holds NaN or infinite"):
        frechet_distance(mean, cov, mean * bad, cov)
    fake = features("b", 20)
    fake[3, 4] = bad
    with pytest.raises(ValueError, match="generated images hold NaN or infinite"):
        distance(features("a", 20), fake)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_misuse_says_what_is_wrong():
    mean, cov = gaussian("a")
    with pytest.raises(ValueError, match=r"cov_2 has shape \(3, 3\)"):
        frechet_distance(mean, cov, mean, cov[:3, :3])
    with pytest.raises(ConfigError, match="2 or more generated images for a covariance, it got 1"):
        distance(features("a", 20), features("b", 1))
    with pytest.raises(ValueError, match=r"expected \(B, 12\)"):
        FrechetDistance(DIM).update(torch.zeros(4, DIM + 1), real=True)
    with pytest.raises(ConfigError, match="num_features=0: must be 1 or more"):
        FrechetDistance(0)
