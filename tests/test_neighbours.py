"""Neighbour metrics against brute force, torch-fidelity, expectations and evident answers."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from src.errors import ConfigError
from src.metric import base
from src.metric.base import Reference, Samples
from src.metric.neighbours import Memorised, Neighbours, memorised_share, neighbour_scores
from src.noise import generator


def draws(key, num, dim=5):
    return torch.randn(num, dim, generator=generator("test_neighbours", key))


def scores(real, fake, k=3):
    return {name: value for name, (value, _) in neighbour_scores(real, fake, k).items()}


def brute_force(real, fake, k):
    real, fake = real.double().numpy(), fake.double().numpy()

    def apart(a, b):
        return np.sqrt(np.array([[sum((p - q) ** 2) for q in b] for p in a]))

    def radius(x):
        return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(apart(x, x))])

    between, real_radius, fake_radius = apart(fake, real), radius(real), radius(fake)
    inside = between <= real_radius
    return {
        "precision": inside.any(1).mean(),
        "recall": (between <= fake_radius[:, None]).any(0).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(0).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_brute_force(k, monkeypatch):
    real, fake = draws("real", 40), draws("fake", 25) * 0.8 + 0.3
    assert scores(real, fake, k) == pytest.approx(brute_force(real, fake, k))
    monkeypatch.setattr(base, "BLOCK", 100)  # several blocks
    assert scores(real, fake, k) == pytest.approx(brute_force(real, fake, k))


@pytest.mark.parametrize("k", [1, 5])
def test_precision_and_recall_equal_torch_fidelity(k):
    real, fake = draws("real", 300), draws("fake", 200) * 0.6 + 0.5
    settings = {
        "prc_neighborhood": k,
        "prc_batch_size": 100,
        "save_cpu_ram": False,
        "verbose": False,
    }
    oracle = prc_features_to_metric(fake.double(), real.double(), **settings)
    found = scores(real, fake, k)
    assert abs(found["precision"] - found["recall"]) > 0.2  # so that swapped sides would show
    assert (found["precision"], found["recall"]) == pytest.approx(
        (oracle["precision"], oracle["recall"])
    )


def test_which_side_is_which():
    """Fakes that are good but alike: all inside the real images, of which they cover few."""
    real = torch.arange(100.0)[:, None]
    good_but_alike = 50 + torch.linspace(-1, 1, 20)[:, None]
    found = scores(real, good_but_alike)
    assert found["precision"] == 1
    assert found["recall"] <= 0.03
    assert found["coverage"] <= 0.08
    diverse_but_bad = torch.cat([real, 1000 + 50 * torch.arange(100.0)[:, None]]) + 0.25
    found = scores(real, diverse_but_bad)
    assert found["precision"] == 0.5
    assert found["recall"] == found["coverage"] == 1


def test_collapsed_generator():
    """All fakes are one image that is no real one: their balls are points in any dimension."""
    for scale in (1, 1e4):
        real = draws("real", 200, dim=64) * scale + 3
        one = real.mean(dim=0).expand(50, -1) + 0.1
        found = scores(real, one)
        assert found["recall"] == 0
        assert found["precision"] in (0, 1)
        copy = scores(real, real[:1].expand(50, -1))
        assert copy["recall"] == 1 / 200  # that one image
        assert copy["precision"] == 1


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_copies_count_as_ties(offset):
    real = draws("copies", 150, dim=32).double() + offset
    found = scores(real, real, k=4)
    # k neighbours and the image itself
    assert found == {"precision": 1, "recall": 1, "density": 5 / 4, "coverage": 1}
    doubled = torch.cat([real, real])
    assert scores(doubled, real, k=1)["coverage"] == 1  # balls of radius 0
    assert scores(doubled, real + 1e-3, k=1) == {
        "precision": 0,
        "recall": 1,
        "density": 0,
        "coverage": 0,
    }


def test_expectations_for_equal_distributions():
    """E density = 1 and E coverage = 1 - prod (N - i) / (N + M - i), for any distribution.

    Naeem et al. 2020.
    """
    random, k = generator("equal"), 3
    for n, m in ((200, 200), (200, 60)):
        sets = [torch.randn(n + m, 4, generator=random).exp() for _ in range(120)]
        found = [Neighbours(k)(Samples(Reference(x[:n]), x[n:])) for x in sets]
        for name in ("density", "coverage"):
            values = torch.tensor([each[name].value for each in found])
            expected = found[0][name].context["of_real"]
            assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / 120**0.5
        missed = math.comb(n - 1, k) / math.comb(n + m - 1, k)
        assert found[0]["coverage"].context["of_real"] == pytest.approx(1 - missed)
    assert Neighbours(5)(Samples(Reference(draws("a", 900)), draws("b", 900)))["coverage"].context[
        "of_real"
    ] == pytest.approx(1 - 0.5**5, abs=2e-3)


def test_errors_are_the_spread_over_generated_images():
    random, real = generator("errors"), draws("real", 500, dim=8)
    repeats = [
        neighbour_scores(real, torch.randn(150, 8, generator=random) + 0.3, 5) for _ in range(150)
    ]
    for name in ("precision", "density"):
        values, errors = torch.tensor([each[name] for each in repeats]).T
        # standard error of an sd 6 %
        assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)
    assert repeats[0]["recall"][1] is None
    assert repeats[0]["coverage"][1] is None


def test_shares_of_nothing_and_everything_are_not_certain():
    """Half the width of Wilson's interval: in 100 draws a share of 1 % is mostly not seen."""
    found = neighbour_scores(draws("real", 100), draws("far", 99) + 1000, 5)
    assert found["precision"] == (0, pytest.approx(0.005))
    assert found["density"] == (0, None)
    assert base.binomial_error(1.0, 99) == pytest.approx(0.005)
    assert base.binomial_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    measured = Neighbours(5)(Samples(Reference(draws("real", 100)), draws("far", 99) + 1000))[
        "density"
    ]
    assert (measured.error, measured.error_kind) == (None, "")


def test_measure_says_what_it_used():
    real, fake = draws("real", 60), draws("fake", 50)
    found = Neighbours(k=2, max_images=20)(Samples(Reference(real), fake))
    assert {name: each.value for name, each in found.items()} == scores(real[::3], fake[:20], k=2)
    assert found["recall"].context == {"n_real": 20, "n_fake": 20, "k": 2}
    assert {type(each.value) for each in found.values()} == {float}


@pytest.mark.parametrize("quantile", [0.05, 0.3])
def test_honest_model_scores_the_quantile(quantile):
    random = generator("honest")
    sets = [torch.randn(380, 3, generator=random) for _ in range(300)]
    found = torch.tensor(
        [memorised_share(x[:200], x[200:279], x[279:], quantile) for x in sets], dtype=torch.float64
    )
    values, errors = found.T
    assert abs(float(values.mean()) - quantile) < 4 * float(values.std()) / 300**0.5
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.25)


def test_copies_are_found(monkeypatch):
    train, held_out, fresh = (
        draws("train", 400, 20),
        draws("held_out", 99, 20),
        draws("fresh", 200, 20),
    )
    honest, _ = memorised_share(train, held_out, fresh)
    mixed = torch.cat([fresh[:100], train[:100]])
    assert memorised_share(train, held_out, train[:50]) == (1, pytest.approx(0.5 / 51))
    share, error = memorised_share(train, held_out, mixed)
    assert share == pytest.approx(0.5 + honest / 2, abs=0.05)
    monkeypatch.setattr(base, "BLOCK", 1000)
    assert memorised_share(train, held_out, mixed) == pytest.approx((share, error))


def test_memorised_against_brute_force():
    train, held_out, fake = draws("train", 50), draws("held_out", 39), draws("fake", 60)
    nearest = [torch.cdist(x.double(), train.double()).amin(dim=1) for x in (held_out, fake)]
    threshold = nearest[0].sort().values[3]  # rank 0.1 * 40
    assert memorised_share(train, held_out, fake, 0.1)[0] == float(
        (nearest[1] < threshold).double().mean()
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_copies_are_nothing_where_unseen_images_are_copies_too(offset):
    train = draws("train", 300, dim=64) + offset
    assert memorised_share(train, train[:100], train[100:])[0] == 0


def test_memorised_says_what_it_used():
    samples = Samples(
        Reference(draws("train", 50)), draws("fake", 20), held_out=draws("held_out", 30)
    )
    found = Memorised()(samples)["memorised"]
    assert found.context == {
        "n_real": 50,
        "n_unseen": 30,
        "n_fake": 20,
        "quantile": 0.05,
        "of_real": 1 / 31,
    }
    with pytest.raises(ValueError, match="no held-out images"):
        Memorised()(Samples(samples.real, samples.fake))
    with pytest.raises(
        ValueError, match=r"a quantile of 0.05 needs 19 held-out images, there are 18"
    ):
        Memorised()(Samples(samples.real, samples.fake, held_out=draws("held_out", 18)))


def test_misuse_says_what_is_wrong():
    with pytest.raises(
        ValueError, match="k=5 neighbours need 6 or more images, there are 20 and 5"
    ):
        neighbour_scores(draws("real", 20), draws("fake", 5), 5)
    for settings in ({"k": 0}, {"k": 5, "max_images": 5}):
        with pytest.raises(ConfigError, match="must be"):
            Neighbours(**settings)
    with pytest.raises(ConfigError, match="quantile=0: must be between 0 and 1"):
        Memorised(0)
