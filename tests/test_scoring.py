"""Likelihoods as numbers: the scale, the tightest bound, context, and what has none."""

import math

import pytest
import torch
from support import SHAPE, images, make_diffusion, make_vae
from torch import nn

from src.dataset.base import ImageData, to_uint8
from src.evaluation.scoring import Scoring
from src.model.base import CanEstimate, CanScore, Scores
from src.training.data import ImageDataModule

UNIT = math.prod(SHAPE) * math.log(2)


def data_of(seed=0, **settings):
    return ImageDataModule(
        lambda split: ImageData(to_uint8(images(20))), SHAPE, 4, seed=seed, **settings
    )


def measured(model, data=None, **effort):
    scoring, data = Scoring(batch_size=8, **effort), data or data_of()
    return scoring.measurements(scoring.scores(model, data, torch.device("cpu")), model, data)


class Fixed(nn.Module):
    """Estimates that are known beforehand."""

    discrete_scale = "8-bit"

    def __init__(self, **nats):
        super().__init__()
        self.nats = nats

    def score(self, x, effort, generator=None):
        return Scores({name: torch.full((len(x),), value) for name, value in self.nats.items()})


def test_the_row_on_which_families_compare_is_the_tightest_bound():
    found = measured(Fixed(elbo=-90.0, iwae_100=-80.0, flow=-10.0))
    best = found["bits_per_dim"]
    assert next(iter(found)) == "bits_per_dim"
    assert best.value == found["bits_per_dim_iwae_100"].value == pytest.approx(80 / UNIT)
    assert best.context["estimate"] == "iwae_100"
    assert best.context["importance_samples"] == 100
    # a solver's error is no bound
    assert found["bits_per_dim_flow"].value == pytest.approx(10 / UNIT)
    assert "ODE solver" in found["bits_per_dim_flow"].context["likelihood_kind"]
    partly = measured(Fixed(vlb_large=math.nan, vlb_small=-70.0))
    assert partly["bits_per_dim"].context["estimate"] == "vlb_small"
    assert partly["bits_per_dim_vlb_large"].reason == "20 of 20 images have no finite likelihood"
    none = measured(Fixed(vlb_large=math.nan))
    assert (none["bits_per_dim"].value, none["bits_per_dim"].error) == (None, None)


def test_errors_are_standard_errors_of_the_mean_over_images():
    n = 20
    one_to_n = torch.arange(1.0, n + 1)
    scores = Scores({"elbo": -UNIT * one_to_n}, {"rate": one_to_n})
    found = Scoring().measurements(scores, Fixed(), data_of())
    for name in ("bits_per_dim", "bits_per_dim_elbo", "rate"):
        assert found[name].value == pytest.approx((n + 1) / 2)
        # the sample variance of 1 ... n is n (n + 1) / 12
        assert found[name].error == pytest.approx(math.sqrt((n + 1) / 12))
        assert found[name].error_kind == "standard error over images"
    single = Scoring().measurements(Scores({"elbo": -one_to_n[:1]}), Fixed(), data_of())
    assert single["bits_per_dim"].error is None


def test_the_row_of_binarised_images_says_how_they_were():
    model, found = make_vae("bernoulli"), {}
    for how in ("static", "dynamic"):
        found |= measured(model, data_of(binarize=how), importance_samples=3)
    assert {
        f"nats_{how}{name}" for how in ("static", "dynamic") for name in ("", "_elbo", "_iwae_3")
    } < found.keys()
    assert found["nats_static"].context["values"].startswith("bits (static")


def test_every_number_says_which_effort_it_took():
    found = measured(make_diffusion(), timesteps=7, flow_steps=2)
    efforts = {"importance_samples", "timesteps", "flow_steps"}
    by_name = {
        name: {k: v for k, v in m.context.items() if k in efforts} for name, m in found.items()
    }
    assert (
        by_name["bits_per_dim_vlb_large"]
        == by_name["rate_small"]
        == by_name["bits_per_dim"]
        == {"timesteps": 7}
    )
    assert by_name["bits_per_dim_flow"] == {"flow_steps": 2}
    assert by_name["distortion_large"] == {}
    assert measured(make_diffusion(), timesteps=None)["rate_large"].context["timesteps"] == "all"
    found = measured(make_vae(), importance_samples=5)
    assert found["bits_per_dim_iwae_5"].context["importance_samples"] == 5
    assert "importance_samples" not in found["bits_per_dim_elbo"].context
    assert "timesteps" not in found["rate"].context


class OnlyDensity(nn.Module):
    """A model of DESIGN's minimum: log p(x) of each image."""

    likelihood_kind = "exact, density on [-1, 1]"

    def log_likelihood(self, x, generator=None):
        assert len(generator) == len(x)
        return x.flatten(1).sum(1)


def test_a_model_with_log_likelihood_alone_is_scored_by_it():
    model = OnlyDensity()
    assert isinstance(model, CanScore)
    assert not isinstance(model, CanEstimate)
    found = measured(model)
    assert set(found) == {"log_likelihood"}  # a density has no place in the row of bits/dim
    number = found["log_likelihood"]
    assert number.value == pytest.approx(
        float(images(20).flatten(1).sum(1).double().mean()), rel=1e-5
    )
    assert number.error > 0
    assert number.context["likelihood_kind"] == "exact, density on [-1, 1]"
    assert number.context["unit"] == "nats per image"


def test_noise_and_dynamic_bits_are_those_of_the_seed():
    def elbo(seed, how):
        torch.manual_seed(0)
        return measured(make_vae("bernoulli"), data_of(seed, binarize=how), importance_samples=2)[
            "nats_" + how
        ].value

    for how in ("static", "dynamic"):
        assert elbo(0, how) == elbo(0, how)
        assert elbo(0, how) != elbo(1, how)
