"""torchmetrics' metrics of image sets against ours, on the same features."""

import math
from functools import partial

import pytest
import torch
from evaluated import evaluated, trained  # noqa: F401 (a fixture)
from torchmetrics.image import TotalVariation
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from src.errors import ConfigError
from src.metric import fid, inception_score
from src.metric.base import Reference, Samples
from src.metric.generation import GenerationMetrics
from src.metric.kid import kernel_distance
from src.metric.torchmetric import TorchMetric
from src.noise import generator

DIM, CLASSES = 6, 4


def drawn(num, key, dim=DIM):
    return torch.randn(num, dim, generator=generator("test_torchmetric", key))


def samples(num_real=60, num_fake=40, probabilities=True):
    logits = drawn(num_fake, "logits", CLASSES) * 3
    classes = logits.softmax(1) if probabilities else None
    return Samples(
        Reference(drawn(num_real, "real")), 0.8 * drawn(num_fake, "fake") + 0.3, None, classes
    )


def measured(metric, given):
    return TorchMetric(metric, "a")(given)["a"]


def test_the_frechet_distance_is_ours():
    found = measured(partial(FrechetInceptionDistance), samples())
    expected = fid.Fid()(samples())["fid"]
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.error is None
    assert (found.context["n_real"], found.context["n_fake"]) == (60, 40)
    assert found.context["metric"] == "FrechetInceptionDistance"


def test_the_kernel_distance_of_all_images_is_ours():
    given = samples(40, 40)
    whole = partial(KernelInceptionDistance, subset_size=40, subsets=2)
    found = measured(whole, given)
    expected, _ = kernel_distance(given.real.features, given.fake)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.error_kind == "sd over 2 subsets"
    assert found.context["settings"] == {"subset_size": 40, "subsets": 2}


def test_the_kernel_distance_over_subsets_is_ours_on_average():
    given = samples(60, 60)
    found = measured(partial(KernelInceptionDistance, subset_size=30, subsets=400), given)
    expected, _ = kernel_distance(given.real.features, given.fake)
    assert found.value == pytest.approx(expected, abs=4 * found.error / math.sqrt(400))


def test_the_inception_score_is_ours():
    found = measured(partial(InceptionScore, splits=1), samples())
    expected, _ = inception_score.inception_score(samples().probabilities, 1)
    assert found.value == pytest.approx(expected, rel=1e-7)  # float32 rows sum to 1 so far
    assert (found.error, found.context["n_fake"]) == (None, 40)
    assert "n_real" not in found.context
    assert measured(partial(InceptionScore, splits=4), samples()).error_kind == "sd over 4 splits"


def test_a_sure_classifier_gives_the_number_of_classes():
    given = Samples(Reference(drawn(9, "real")), drawn(8, "fake"), None, torch.eye(4).repeat(2, 1))
    found = measured(partial(InceptionScore, splits=1), given)
    assert found.value == pytest.approx(4, rel=1e-9)


def test_memorisation_informed_distance_is_the_frechet_distance_of_new_images():
    kind = partial(MemorizationInformedFrechetInceptionDistance, cosine_distance_eps=1e-9)
    expected = fid.Fid()(samples())["fid"].value
    assert measured(kind, samples()).value == pytest.approx(expected, rel=1e-9)


def test_subsets_repeat_and_the_random_numbers_of_the_run_stay():
    before = torch.random.get_rng_state()
    kind = partial(KernelInceptionDistance, subset_size=10, subsets=3)
    assert measured(kind, samples()) == measured(kind, samples())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_alone_are_seen_in_zero_to_one():
    """Stripes one pixel wide differ at every step across and at none down."""
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(2).expand(5, 1, 3, 4)
    measure = TorchMetric(partial(TotalVariation, reduction="mean"), "tv")
    assert GenerationMetrics({"tv": measure}).sees_images
    assert not GenerationMetrics({"fid": fid.Fid()}).sees_images
    given = Samples(Reference(drawn(9, "real")), drawn(5, "fake"), images=stripes)
    assert measure(given)["tv"].value == pytest.approx(3 * 3)  # rows x steps
    assert measure(given)["tv"].context["n_fake"] == 5


def test_what_cannot_be_measured_is_a_null_with_its_reason():
    kinds = {"fid": FrechetInceptionDistance, "kid": KernelInceptionDistance, "is": InceptionScore}
    measures = {name: TorchMetric(partial(kind), name) for name, kind in kinds.items()}
    found = GenerationMetrics(measures)(samples(num_fake=1, probabilities=False))
    assert {name: number.value for name, number in found.items()} == dict.fromkeys(kinds)
    assert "More than one sample is required" in found["fid"].reason
    assert "subset_size" in found["kid"].reason
    assert not found["is"].applies
    assert found["fid"].context == {"n_real": 60, "n_fake": 1}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (partial(LearnedPerceptualImagePatchSimilarity), "metric=LearnedPerceptual"),
        (torch.hub.load, "metric=load: must be a metric"),
        ("FrechetInceptionDistance", "metric=FrechetInceptionDistance: must be"),
        (partial(FrechetInceptionDistance, feature=2048), "metric.feature=2048: must be left out"),
    ],
)
def test_nothing_is_built_that_brings_a_network(metric, message):
    with pytest.raises(ConfigError, match=message):
        TorchMetric(metric, "a")


def test_wrong_settings_are_refused_at_once():
    with pytest.raises(ValueError, match="subset_size"):
        TorchMetric(partial(KernelInceptionDistance, subset_size=-1), "a")
    with pytest.raises(ValueError, match="splitz"):
        TorchMetric(partial(InceptionScore, splitz=3), "a")


def test_a_line_adds_a_measure_and_its_run_can_be_evaluated(cli, small, trained):  # noqa: F811
    ours = "{_target_: src.metric.torchmetric.TorchMetric, name: "
    node = (
        f"metric.measures.other={ours}fid_other, "
        "metric: {_target_: torchmetrics.image.fid.FrechetInceptionDistance, _partial_: true}}"
    )
    variation = (
        f"metric.measures.variation={ours}variation, metric: "
        "{_target_: torchmetrics.image.TotalVariation, reduction: mean, _partial_: true}}"
    )
    run = trained(cli, small, "other", "model=vae", f"+{node}", f"+{variation}")
    words = ["score=null", "reconstruction=null", "latents=false", "metric=fast", "num_samples=40"]
    _, card = evaluated(cli, run, "features=pixels", *words, f"+{node}", f"+{variation}")
    assert card["test/fid_other_pixels_40"] == pytest.approx(card["test/fid_pixels_40"], rel=1e-6)
    assert card["test/variation_pixels_40"] > 0
    details = card["details"]["test/fid_other_pixels_40"]["context"]
    assert (details["n_real"], details["n_fake"]) == (1257, 40)
