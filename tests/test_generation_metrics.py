"""Inception score, and all measures together: every name has a number or a reason."""

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from src.errors import ConfigError
from src.metric.base import Measurement, Reference, Samples
from src.metric.fid import Fid
from src.metric.generation import GenerationMetrics, pooled
from src.metric.inception_score import InceptionScore, inception_score
from src.metric.kid import Kid
from src.metric.neighbours import Memorised, Neighbours
from src.noise import generator

MEASURES = {
    "fid": Fid(),
    "kid": Kid(),
    "neighbours": Neighbours(k=3),
    "memorised": Memorised(),
    "inception_score": InceptionScore(num_splits=4),
}
NAMES = (*Fid.names, *Kid.names, *Neighbours.names, *Memorised.names, *InceptionScore.names)
WITH_FLOOR = (*Fid.names, Fid.floor_name, *NAMES[len(Fid.names) :])


def draws(key, num, dim=4):
    return torch.randn(num, dim, generator=generator("test_generation", key))


def samples(fake, classes=5):
    probabilities = (3 * draws("logits", len(fake), classes)).softmax(dim=1)
    return Samples(Reference(draws("real", 100)), fake, draws("held_out", 60), probabilities)


@pytest.mark.parametrize("num_splits", [1, 7])
def test_inception_score_equals_torch_fidelity(num_splits):
    logits = 3 * draws("logits", 98, dim=10)
    oracle = isc_features_to_metric(logits, splits=num_splits, shuffle=False)
    expected = oracle["inception_score_mean"], oracle["inception_score_std"]
    assert inception_score(logits.double().softmax(dim=1), num_splits) == pytest.approx(
        expected, rel=1e-12
    )


def test_inception_score_between_its_bounds():
    sure = torch.eye(10).repeat(20, 1)  # zeros: 0 log 0
    assert inception_score(sure, 2)[0] == pytest.approx(10)
    assert inception_score(torch.full((50, 10), 0.1), 5) == pytest.approx((1, 0), abs=1e-12)
    # sure of one class alone
    assert inception_score(sure[:1].expand(50, -1), 5) == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_does_not_depend_on_a_sorting_by_class():
    by_class = torch.eye(10).repeat_interleave(100, dim=0)
    found = InceptionScore(num_splits=10)(
        Samples(Reference(draws("real", 9)), draws("fake", 1000), None, by_class)
    )
    assert found["inception_score"].value > 9  # splits in order would give 1
    assert found["inception_score"].error_kind == "sd over 10 splits"


def test_confident_is_the_share_above_the_threshold():
    probabilities = torch.tensor(
        [[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.02, 0.98]], dtype=torch.float64
    )
    given = Samples(Reference(draws("real", 9)), draws("fake", 4), None, probabilities)
    found = InceptionScore(num_splits=1)(given)
    # sqrt(4 / 4 + 1 / 4) / 5
    assert (found["confident"].value, found["confident"].error) == (0.5, 5**0.5 / 10)
    assert found["inception_score"].error is None
    assert InceptionScore(num_splits=1, threshold=0.5)(given)["confident"].value == 1


def test_features_without_a_classifier_have_no_inception_score():
    found = InceptionScore()(Samples(Reference(draws("real", 9)), draws("fake", 4)))
    assert {each.reason for each in found.values()} == {"the features are not a classifier's"}
    assert {each.value for each in found.values()} == {None}
    assert {each.applies for each in found.values()} == {False}


def test_all_measures_together():
    metrics = GenerationMetrics(MEASURES)
    found = metrics(samples(draws("fake", 50)))
    assert metrics.active
    assert tuple(found) == NAMES
    assert metrics.names == WITH_FLOOR
    assert {type(each.value) for each in found.values()} == {float}
    assert all(
        each.context["n_real"] == 100
        for name, each in found.items()
        if name not in InceptionScore.names
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_images_have_no_number_but_a_reason(bad):
    fake = draws("fake", 50)
    fake[7, 1] = bad
    found = GenerationMetrics(MEASURES)(samples(fake))
    assert tuple(found) == NAMES
    assert {each.value for each in found.values()} == {None}
    assert {each.reason for each in found.values()} == {
        "features of the generated images hold NaN or infinite values"
    }
    assert found["kid"].context == {"n_real": 100, "n_fake": 50}
    few = GenerationMetrics({"kid": Kid(max_images=20)})(samples(fake))["kid"]
    assert few.context == {"n_real": 20, "n_fake": 20}  # as it would have been
    given = samples(draws("fake", 50))
    given.probabilities[0, 0] = bad
    assert "probabilities" in GenerationMetrics(MEASURES)(given)["fid"].reason


@pytest.mark.parametrize("num", [0, 1, 3, 4, 20])
def test_too_few_images_never_crash(num):
    found = GenerationMetrics(MEASURES)(samples(draws("fake", num)))
    assert tuple(found) == NAMES
    for each in found.values():
        assert (each.value is None) == bool(each.reason)
        assert each.value is None or math.isfinite(each.value)
    assert (found["fid"].value is None) == (num < 2)
    assert (found["precision"].value is None) == (num < 4)


def test_collapsed_images_have_what_can_be_had():
    found = GenerationMetrics(MEASURES)(samples(draws("fake", 1).expand(50, -1)))
    for name in NAMES:
        assert math.isfinite(found[name].value), name
        assert found[name].error is None or math.isfinite(found[name].error)
    assert found["recall"].value == 0


def test_floors_need_no_generated_images():
    metrics, real = GenerationMetrics(MEASURES), Reference(draws("real", 100))
    found = metrics.floors(real, Reference(draws("held_out", 60)))
    assert set(found) == {"fid_floor"}
    assert found["fid_floor"].value > 0
    assert found["fid_floor"].context == {"n_real": 100, "n_held_out": 60}
    alone = metrics.floors(real, Reference(draws("held_out", 1)))["fid_floor"]
    assert (alone.value, alone.reason) == (None, "a covariance needs 2 or more images, it got 1")
    assert alone.context["n_held_out"] == 1
    assert GenerationMetrics({"kid": Kid()}).floors(real, real) == {}


def test_measures_can_be_switched_off():
    metrics = GenerationMetrics({"fid": Fid(), "kid": None})
    assert metrics.names == (*Fid.names, Fid.floor_name)
    for nothing in (None, {}, {"kid": None}):
        metrics = GenerationMetrics(nothing)
        assert not metrics.active
        assert metrics.names == ()
        assert metrics(samples(draws("fake", 20))) == {}


def test_only_a_value_error_is_a_missing_number():
    class Broken:
        names = ("broken", "too")

        def __init__(self, error):
            self.error = error

        def __call__(self, samples):
            raise self.error

    found = GenerationMetrics({"a": Broken(ValueError("why\nmore")), "b": Kid()})(
        samples(draws("fake", 20))
    )
    assert found["broken"].reason == found["too"].reason == "why"
    assert found["kid"].value is not None
    with pytest.raises(TypeError):
        GenerationMetrics({"a": Broken(TypeError("a mistake"))})(samples(draws("fake", 20)))


def test_repeats_are_pooled():
    first = {
        "fid": Measurement(1.0, 0.1, "standard error", context={"n_fake": 5}),
        "floor": Measurement(0.5, 0.2),
    }
    second = {
        "fid": Measurement(4.0, 0.3, "standard error", context={"n_fake": 5}),
        "floor": Measurement(0.5, 0.2),
    }
    found = pooled([first, second])
    assert found["fid"] == Measurement(
        2.5, pytest.approx(3 / 2**0.5), "sd over 2 repeats", context={"n_fake": 5}
    )
    assert found["floor"] == first["floor"]  # nothing was drawn for it
    assert pooled([first]) == first
    gone = Measurement(None, reason="diverged")
    assert pooled([first, {"fid": gone, "floor": gone}]) == {"fid": gone, "floor": gone}


def test_misuse_says_what_is_wrong():
    with pytest.raises(ConfigError, match="num_repeats=0: must be 1 or more"):
        GenerationMetrics({}, num_repeats=0)
    with pytest.raises(ConfigError, match="more than one of them measures kid"):
        GenerationMetrics({"one": Kid(), "two": Kid()})
    with pytest.raises(ConfigError, match="num_splits=0"):
        InceptionScore(num_splits=0)
    with pytest.raises(ConfigError, match="threshold=1"):
        InceptionScore(threshold=1)
    with pytest.raises(ValueError, match="10 splits need as many images, there are 3"):
        inception_score(torch.full((3, 2), 0.5), 10)
