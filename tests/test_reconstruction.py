"""Reconstruction quality: closed forms, independent formulas, its place on the card."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.ndimage import correlate
from support import CONF
from torch import nn
from torchmetrics.image import (
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    UniversalImageQualityIndex,
)

from src.comparison.comparison import direction
from src.config.build import construct
from src.dataset.base import Batch, ImageData
from src.errors import CheckpointError, ConfigError, DataError
from src.evaluation.lpips import BACKBONES, Lpips, lpips
from src.evaluation.reconstruction import Reconstruction
from src.metric.reconstruction import fit, per_image, window
from src.noise import Seeds, generator

SHAPE = (1, 8, 8)


def pictures(num, shape=SHAPE, key="pictures"):
    return torch.rand(num, *shape, generator=generator("test_reconstruction", key))


@pytest.fixture
def metrics():
    """The metrics that ``conf/evaluate.yaml`` names."""
    node = OmegaConf.load(CONF / "evaluate.yaml").reconstruction.metrics
    return construct(OmegaConf.to_container(node), "reconstruction.metrics")


def blurred(images, width, sigma):
    """Gaussian means by scipy, in float64, edges reflected without repeating the last pixel."""
    offsets = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    one = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = (one / one.sum()).outer(one / one.sum()).numpy()
    return torch.from_numpy(correlate(images.numpy(), kernel[None, None], mode="mirror"))


def ssim(x, y, width, sigma, data_range=1.0):
    """Wang et al. 2004, eq. 13, of each pair of images."""
    x, y = x.double(), y.double()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y, xx, yy, xy = (
        blurred(image, width, sigma) for image in (x, y, x * x, y * y, x * y)
    )
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).flatten(1).mean(1)


@pytest.mark.parametrize("error", [0.1, 0.01])
def test_a_constant_error_has_a_known_psnr(metrics, error):
    target = pictures(5) * 0.5
    expected = torch.full((5,), -20 * math.log10(error))
    torch.testing.assert_close(per_image(metrics["psnr"], target + error, target), expected)


def test_equal_images_have_structural_similarity_one(metrics):
    target = pictures(4)
    fit(metrics["ssim"], SHAPE)
    torch.testing.assert_close(per_image(metrics["ssim"], target, target), torch.ones(4))


@pytest.mark.parametrize("size", [3, 8, 9, 28])
def test_structural_similarity_is_that_of_the_paper(metrics, size):
    shape = (3, size, size)
    output, target = pictures(4, shape, "output"), pictures(4, shape)
    output = 0.7 * target + 0.3 * output
    width, sigma = window(size)
    assert fit(metrics["ssim"], shape)["kernel"] == f"Gaussian {width} x {width}"
    found = per_image(metrics["ssim"], output, target).double()
    torch.testing.assert_close(found, ssim(output, target, width, sigma), rtol=1e-4, atol=1e-5)


def test_the_window_is_the_largest_odd_one_that_fits():
    expected = {1: 1, 2: 1, 3: 3, 7: 7, 8: 7, 10: 9, 11: 11, 12: 11, 28: 11, 256: 11}
    for size, width in expected.items():
        assert window(size) == (width, 1.5 * width / 11)
        assert 2 * int(3.5 * window(size)[1] + 0.5) + 1 == width  # torchmetrics' rule


def test_metrics_of_a_batch_are_measured_image_by_image():
    output, target = pictures(6, key="output"), pictures(6)
    each = per_image(PeakSignalNoiseRatio(data_range=1.0), output, target)
    expected = -10 * (output - target).square().flatten(1).mean(1).log10()
    torch.testing.assert_close(each, expected)


class Halving(nn.Module):
    """Reconstructs half of the contrast."""

    def reconstruct(self, x):
        return x / 2


class Data:
    """Test images in [-1, 1]."""

    binarize = None

    def __init__(self, num, shape=SHAPE):
        images = (pictures(num, shape) * 255).to(torch.uint8)
        self.splits = {"test": ImageData(images)}

    def batch(self, split, block):
        x = self.splits[split].images[list(block)] / 127.5 - 1
        return Batch(x, None, Seeds([0] * len(block)), np.array(block))


def measured(named, num=30, batch_size=7, shape=SHAPE):
    reconstruction = Reconstruction(named, batch_size)
    return reconstruction.measure(Halving(), Data(num, shape), torch.device("cpu"))


def test_numbers_have_an_error_over_images_and_say_what_they_are_of(metrics):
    found = measured(metrics)
    assert found.keys() == {"psnr", "ssim"}
    x = Data(30).splits["test"].images / 255 - 0.5
    expected = -10 * (x / 2).square().flatten(1).mean(1).log10()
    assert found["psnr"].value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found["psnr"].error == pytest.approx(float(expected.std()) / 30**0.5, rel=1e-4)
    assert found["psnr"].error_kind == "standard error over images"
    context = found["psnr"].context
    assert (context["unit"], context["data_range"], context["n_images"]) == ("dB", 1.0, 30)
    assert context["values"] == "[0, 1], reconstructions not rounded to 8 bits"
    assert (found["ssim"].context["kernel"], found["ssim"].context["sigma"]) == (
        "Gaussian 7 x 7",
        0.9545,
    )
    assert measured(metrics, batch_size=30)["psnr"].value == found["psnr"].value


def test_what_cannot_be_measured_is_a_null_with_its_reason():
    uniform = StructuralSimilarityIndexMeasure(gaussian_kernel=False, data_range=1.0)
    found = measured({"ssim": uniform, "psnr": PeakSignalNoiseRatio(1.0)}, shape=(1, 4, 4))
    assert found["ssim"].value is None
    assert "Padding size" in found["ssim"].reason
    assert found["psnr"].value > 0
    full = StructuralSimilarityIndexMeasure(data_range=1.0, return_full_image=True)
    assert measured({"ssim": full})["ssim"].value is None


def test_an_image_that_is_reproduced_exactly_has_no_finite_psnr(monkeypatch):
    monkeypatch.setattr(Halving, "reconstruct", lambda self, x: x)
    found = measured({"psnr": PeakSignalNoiseRatio(1.0)})
    assert found["psnr"].reason == "30 of 30 images have no finite psnr"


def test_only_metrics_of_torchmetrics_are_taken():
    with pytest.raises(ConfigError, match="metrics.a=dict: must be a metric of torchmetrics"):
        Reconstruction({"a": {"x": 1}})
    with pytest.raises(ConfigError, match="batch_size=0"):
        Reconstruction({}, 0)


def test_any_pairwise_metric_is_a_line():
    name = "torchmetrics.image.UniversalImageQualityIndex"
    metric = construct({"_target_": name, "kernel_size": [5, 5]}, "reconstruction.metrics.uqi")
    assert isinstance(metric, UniversalImageQualityIndex)
    found = measured({"uqi": metric, "off": None})
    assert found.keys() == {"uqi"}
    assert 0 < found["uqi"].value < 1


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A state dict with random weights, as torchvision writes it."""
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = squeezenet1_1().state_dict()
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.save(state, path)
    return path


def test_lpips_reads_its_backbone_from_a_file(backbone):
    assert lpips() is None
    before = torch.random.get_rng_state()
    metric = lpips(backbone, sha256=None, net="squeeze")
    assert torch.equal(torch.random.get_rng_state(), before)
    state = torch.load(backbone, weights_only=True)
    assert torch.equal(
        metric.net.net.slices[1][1].squeeze.weight, state["features.3.squeeze.weight"]
    )
    target = pictures(3)
    output = (target + pictures(3, key="output")) / 2
    context = fit(metric, SHAPE)
    assert context["resize"] == "bilinear to 64 x 64"
    assert len(context["weights_sha256"]) == 64
    found = per_image(metric, output, target)
    assert found.shape == (3,)
    assert (found > 0).all()
    torch.testing.assert_close(per_image(metric, target, target), torch.zeros(3))
    large = (
        F.interpolate(x.expand(-1, 3, -1, -1), (64, 64), mode="bilinear") for x in (output, target)
    )
    assert fit(metric, (3, 64, 64))["resize"] == "none"
    torch.testing.assert_close(per_image(metric, *large), found, rtol=1e-4, atol=1e-6)
    assert isinstance(metric, Lpips)
    assert measured({"lpips": metric})["lpips"].error > 0


def test_another_weight_file_is_refused(backbone, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match="reconstruction.metrics.lpips.weights=.*SHA-256 is"):
        lpips(backbone, net="squeeze")
    with pytest.raises(CheckpointError, match="cannot be read as weights of this network"):
        lpips(other, sha256=None, net="squeeze")
    with pytest.raises(DataError, match=f"give the file {BACKBONES['alex'].names[0]}"):
        lpips(tmp_path / "missing.pth")
    with pytest.raises(ConfigError, match="sha256=x: must be published"):
        lpips(sha256="x")
    with pytest.raises(ConfigError, match="net=resnet: must be one of alex, vgg, squeeze"):
        lpips(net="resnet")


def test_digests_are_those_that_the_names_begin():
    for published in BACKBONES.values():
        assert len(published.sha256) == 64
        assert f"-{published.sha256[:8]}.pth" in published.url


def test_more_decibels_are_better():
    names = ("psnr", "ssim", "lpips", "psnr_compressed")
    assert [direction(f"test/{name}") for name in names] == [1, 1, -1, 1]
