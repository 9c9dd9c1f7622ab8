"""The metric card: what it holds, how it fails, what it caches, and that ranks change nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, options
from PIL import Image

from src.dataset.base import ImageData
from src.dataset.digits import load
from src.features.base import Features
from src.features.pixels import Pixels
from src.metric.base import Measurement
from src.runtime.card import Card
from src.runtime.reference import reference_of

FAST = ["trainer=cpu", "logger=[]", "num_samples=300", "score.timesteps=5", "score.num_images=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir):
    """Runs by model, trained once for this file."""
    runs = {}

    def get(cli, small, name, *words):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("runs") / name
            done = cli("train", *small, "callback.generation=null", *words, f"hydra.run.dir={runs[name]}")
            assert done.code == 0, done.err
        return runs[name]

    return get


def evaluated(cli, run, *words):
    done = cli("evaluate", f"ckpt_path={run}", *FAST, *words)
    assert done.code == 0, done.err
    card = json.loads((run / "evaluation.json").read_text())
    return done, card


def test_the_card_of_a_diffusion_model(cli, small, trained, cache_dir):
    run = trained(cli, small, "ddpm", "model=ddpm")
    words = ["score.flow_steps=1", "sampler=ddim", "sampler.num_steps=4"]
    done, card = evaluated(cli, run, *words)
    assert {
        "test/fid_classifier_300",
        "test/fid_corrected_classifier_300",
        "test/fid_floor_classifier_360",
        "test/kid_classifier_300",
        "test/precision_classifier_300",
        "test/recall_classifier_300",
        "test/density_classifier_300",
        "test/coverage_classifier_300",
        "test/memorised_classifier_300",
        "test/inception_score_classifier_300",
        "test/bits_per_dim_vlb_large",
        "test/bits_per_dim_vlb_small",
        "test/bits_per_dim_flow",
        "test/rate_large",
        "test/distortion_large",
        "test/loss",
        "val/loss",
    } <= card.keys()
    for name, details in card["details"].items():
        assert (card[name] is None) == bool(details["reason"]), name
        assert details["context"], name
    fid = card["details"]["test/fid_classifier_300"]["context"]
    assert fid["n_real"] == 1257
    assert fid["n_fake"] == 300
    assert fid["weights"] == "EMA"
    assert fid["sampler"]["num_steps"] == 4
    assert {"features_key", "resize", "rounding", "split", "seed", "num_repeats"} <= fid.keys()
    assert card["test/bits_per_dim_vlb_large"] * 64 * np.log(2) == pytest.approx(
        card["test/rate_large"] + card["test/distortion_large"], rel=1e-4
    )
    assert card["context"]["sampling_seconds_per_image"] > 0
    page = (run / "evaluation.md").read_text()
    assert "| `test/fid_classifier_300` |" in page
    assert "bits_per_dim_vlb_large" in done.out
    assert np.asarray(Image.open(run / "evaluation-bound.png")).std() > 5
    assert not list(run.glob(".shards*"))
    again = evaluated(cli, run, *words)[1]
    assert {k: v for k, v in again.items() if "/" in k} == {k: v for k, v in card.items() if "/" in k}


def test_repeats_give_mean_and_spread(cli, small, trained):
    run = trained(cli, small, "vae", "model=vae")
    words = ["score=null", "metric=fast", "features=pixels", "num_samples=40", "metric.num_repeats=3"]
    _, card = evaluated(cli, run, *words)
    details = card["details"]["test/fid_pixels_40"]
    assert details["error_kind"] == "sd over 3 repeats"
    assert details["error"] > 0
    assert card["details"]["test/fid_floor_pixels_360"]["error_kind"] != "sd over 3 repeats"
    assert "likelihood skipped: score=null" in card["notes"]
    assert not any("bits" in name for name in card)


def test_a_vae_has_likelihood_and_latents(cli, small, trained):
    run = trained(cli, small, "vae", "model=vae")
    _, card = evaluated(cli, run, "metric=none", "score.importance_samples=40")
    assert card["test/bits_per_dim_iwae_40"] < card["test/bits_per_dim_elbo"]
    assert card["test/active_units"] >= 0
    assert "8-bit" in card["details"]["test/bits_per_dim_elbo"]["context"]["values"]
    assert not any("fid" in name for name in card)


def test_binarised_images_are_marked(cli, small, trained):
    run = trained(cli, small, "bits", "model=vae", "likelihood=bernoulli", "dataset.binarize=static")
    _, card = evaluated(cli, run, "metric=none", "score.importance_samples=10")
    assert card["test/nats_static_iwae_10"] > 0
    assert "not on the 8-bit scale" in card["details"]["test/nats_static_iwae_10"]["context"]["values"]
    grey = trained(cli, small, "grey", "model=vae", "likelihood=bernoulli")
    _, card = evaluated(cli, grey, "metric=none")
    assert any("likelihood skipped: Bernoulli is a likelihood of bits only" in note for note in card["notes"])


def test_what_a_model_cannot_do_is_skipped_with_a_line(cli, small, trained):
    run = trained(cli, small, "ae", "model=ae")
    done, card = evaluated(cli, run)
    assert "generation metrics skipped: AutoEncoder has no prior to sample from" in card["notes"]
    assert any(note.startswith("likelihood skipped: AutoEncoder") for note in card["notes"])
    assert "test/psnr_compressed" in card


def test_known_factors_are_looked_for(cli, small, trained, monkeypatch):
    monkeypatch.setattr("src.metric.disentanglement.Disentanglement.__init__.__defaults__", (300, 200, 16, 0))
    sizes = "dataset.factor_sizes=[2,2,3,4,4]"
    run = trained(cli, small, "shapes", "model=vae", "dataset=shapes", "dataset.image_size=8", sizes)
    _, card = evaluated(cli, run, "metric=none", "score=null")
    for name in ("mig", "sap", "dci_disentanglement", "factor_vae_score", "beta_vae_score"):
        assert 0 <= card[f"test/{name}"] <= 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["num_samples=1"], 2, "num_samples=1: must be >= 2"),
        (["score.importance_samples=0"], 2, "score.importance_samples=0: must be an integer >= 1"),
        (["score.num_images=1"], 2, "score.num_images=1"),
        (["score.timesteps=0"], 2, "score.timesteps=0"),
        (["metric.num_repeats=0"], 2, "metric.num_repeats=0"),
        (["metric=fidd"], 2, "there are fast, full, none"),
        (["features=inception", "features.weights=WEIGHTS"], 4, "SHA-256"),
    ],
)
def test_settings_that_cannot_work(cli, small, trained, tmp_path, words, code, message):
    run = trained(cli, small, "vae", "model=vae")
    (tmp_path / "weights.pth").write_bytes(b"other weights")
    words = [word.replace("WEIGHTS", str(tmp_path / "weights.pth")) for word in words]
    done = cli("evaluate", f"ckpt_path={run}", "trainer=cpu", "logger=[]", *words)
    assert done.code == code, done.err
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_cache_that_cannot_be_written_costs_time_only(cli, small, trained, tmp_path):
    run = trained(cli, small, "vae", "model=vae")
    (tmp_path / "file").write_text("")
    words = ["features=pixels", "metric=fast", "score=null", f"cache_dir={tmp_path}/file/cache"]
    done, card = evaluated(cli, run, *words)
    assert "not cached, the next evaluation computes them again" in done.out
    assert card["test/fid_pixels_300"] > 0


class Counting(Features):
    """The pixels; counts the images that it was asked for."""

    name, num_features, key = "counting", 64, "counting"
    asked = 0

    def _extract(self, images):
        self.asked += len(images)
        return images.flatten(1)


def test_features_of_real_images_are_computed_once_for_the_same_data(tmp_path):
    features, data = Counting(), load(None, "test")
    first = reference_of(features, data, tmp_path)
    again = reference_of(features, data, tmp_path)
    assert features.asked == 360
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.moments.cov, again.moments.cov)
    assert torch.equal(first.moments.root, again.moments.root)
    assert torch.equal(first.features[7], data.images[7].flatten().float())  # in order, unflipped
    changed = data.images.clone()
    changed[200, 0, 3, 3] += 1
    other = reference_of(features, ImageData(changed), tmp_path)
    assert features.asked == 720
    assert not torch.equal(other.features, first.features)
    features.key = "other weights"
    reference_of(features, data, tmp_path)
    assert features.asked == 1080


def test_a_damaged_cache_is_not_used(tmp_path, caplog):
    features, data = Counting(), load(None, "test")
    reference_of(features, data, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    reference = reference_of(features, data, tmp_path)
    assert features.asked == 720
    assert "computing them again" in caplog.text
    assert torch.equal(reference.features[0], data.images[0].flatten().float())


def test_numbers_without_value_are_null_in_the_card(tmp_path):
    card = Card("a | b", {"seed": 0})
    card.add("test", {"fid_x_2": Measurement(None, reason="too few"), "kid_x_2": Measurement(1.5, 0.25, "se")}, n=2)
    card.write(tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert content["test/fid_x_2"] is None
    assert content["details"]["test/fid_x_2"]["reason"] == "too few"
    assert content["details"]["test/kid_x_2"]["context"] == {"n": 2}
    assert "| `test/kid_x_2` | 1.5 ± 0.25 |" in (tmp_path / "evaluation.md").read_text()


@pytest.mark.parametrize("metric", options("metric"))
def test_every_metric_option_can_be_composed(composed, metric):
    assert "measures" in composed(f"metric={metric}").metric


def test_two_ranks_evaluate_as_one(cli, small, trained, tmp_path):
    run = trained(cli, small, "ddpm", "model=ddpm")
    words = [f"ckpt_path={run}", *FAST, "batch_size=64", "sampler=dpm_solver", "sampler.num_steps=3", "metric=fast"]
    assert cli("evaluate", *words, f"output={tmp_path}/one").code == 0
    words += ["trainer.strategy=ddp", "trainer.devices=2", f"output={tmp_path}/two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "src.evaluate", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert two["context"]["processes"] == 2
    for name in one:
        if name.startswith("test/") and name not in ("test/loss", "test/mse"):
            assert one[name] == pytest.approx(two[name], rel=1e-6), name


def test_pixels_need_no_labels():
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    features = Pixels((1, 4, 4))
    features.fit(images, None)
    assert reference_of(features, ImageData(images), None).features.shape == (20, 16)
