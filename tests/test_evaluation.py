"""The metric card of a run: what it holds and says of its numbers; ranks change nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, options
from evaluated import FAST, doctored, evaluated, numbers, trained  # noqa: F401 (a fixture)
from PIL import Image
from support import PATIENCE

from src.report.readings import reading
from src.training.data import ImageDataModule


def test_the_card_of_a_diffusion_model(cli, small, trained, cache_dir):  # noqa: F811
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
        "test/bits_per_dim",
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
    floor = card["details"]["test/fid_floor_classifier_360"]["context"]
    assert (floor["split"], floor["held_out"], floor["n_held_out"]) == ("train", "test", 360)
    for name in numbers(card):
        basis = {
            key: card["details"][name]["context"].get(key) for key in ("weights", "seed", "split")
        }
        if "accuracy_of" not in name:
            assert None not in basis.values(), (name, basis)
    assert card["details"]["test/bits_per_dim_flow"]["context"]["flow_steps"] == 1
    assert card["details"]["test/bits_per_dim_vlb_small"]["context"]["timesteps"] == 5
    best = card["details"]["test/bits_per_dim"]["context"]["estimate"]
    assert best.startswith("vlb_")
    assert card["test/bits_per_dim"] == card[f"test/bits_per_dim_{best}"]
    assert {"score.flow_steps=1", "sampler.num_steps=4", "num_samples=300"} <= set(
        card["context"]["overrides"]
    )
    assert card["test/bits_per_dim_vlb_large"] * 64 * np.log(2) == pytest.approx(
        card["test/rate_large"] + card["test/distortion_large"], rel=1e-4
    )
    assert card["context"]["sampling_seconds_per_image"] > 0
    assert "econstruct" not in done.out  # neither a number nor a reason
    assert not {"test/psnr", "test/ssim"} & card.keys()
    assert "bits_per_dim_vlb_large" in done.out
    assert "what training minimises" in done.out
    page = (run / "evaluation.md").read_text().replace("\\", "")  # its escapes
    for text in (
        "| `test/fid_classifier_300` |",
        f"features_key {fid['features_key']}",
        "resize none, rounding to uint8",
        "n_fake 300",
        "n_real 1257",
        "n_images 20",
        "timesteps 5",
        "flow_steps 1",
        "- sampler: ddim num_steps=4 eta=1.0",
        "± is standard error over images: `test/bits_per_dim`, ",
        "L_T + sum of the L_t",
        "sampler.num_steps=4",
    ):
        assert text in page, text
    assert np.asarray(Image.open(run / "evaluation-bound.png")).std() > 5
    assert not list(run.glob(".shards*"))
    again = evaluated(cli, run, *words)[1]
    assert numbers(again) == numbers(card)
    # the first is not lost
    for name in ("evaluation-1.json", "evaluation-1.md", "evaluation-bound-1.png"):
        assert (run / name).exists(), name
    assert numbers(json.loads((run / "evaluation-1.json").read_text())) == numbers(card)


@pytest.mark.slow
def test_repeats_give_mean_and_spread(cli, small, trained):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    words = [
        "score=null",
        "metric=fast",
        "features=pixels",
        "num_samples=40",
        "metric.num_repeats=3",
    ]
    done, card = evaluated(cli, run, *words)
    details = card["details"]["test/fid_pixels_40"]
    assert details["error_kind"] == "sd over 3 repeats"
    assert details["error"] > 0
    assert card["details"]["test/fid_floor_pixels_360"]["error_kind"] != "sd over 3 repeats"
    assert "likelihood skipped: score=null" in card["notes"]
    assert not any("bits" in name for name in card)
    assert card["test/inception_score_pixels_40"] is None
    assert "inception_score" not in (run / "evaluation.md").read_text()  # pixels can have none
    assert "inception_score" not in done.out


def test_names_carry_the_number_of_images_really_used(cli, small, trained):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    words = [
        "score=null",
        "latents=false",
        "metric=full",
        "features=pixels",
        "metric.measures.kid.max_images=50",
    ]
    _, card = evaluated(cli, run, *words)
    assert {"test/kid_pixels_50", "test/fid_pixels_300", "test/memorised_pixels_300"} <= card.keys()
    assert not any(name.startswith(("test/active_units", "test/kl_per")) for name in card)


def test_a_vae_has_likelihood_and_latents(cli, small, trained):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    _, card = evaluated(cli, run, "metric=none", "score.importance_samples=40")
    assert card["test/bits_per_dim_iwae_40"] < card["test/bits_per_dim_elbo"]
    assert 0 <= card["test/active_units"] <= card["test/num_latents"] == 16
    assert card["test/bits_per_dim"] == card["test/bits_per_dim_iwae_40"]
    assert card["details"]["test/bits_per_dim_iwae_40"]["context"]["importance_samples"] == 40
    page = (run / "evaluation.md").read_text().replace("\\", "")  # its escapes
    assert "kl_per_latent [" in page
    assert "| nats per image, of what training maximises; density on [-1, 1] |" in page
    assert "the lowest bound, iwae_40" in page
    assert "8-bit" in card["details"]["test/bits_per_dim_elbo"]["context"]["values"]
    assert not any("fid" in name for name in card)
    assert {"test/psnr", "test/ssim"} <= card.keys()


@pytest.mark.slow
def test_binarised_images_are_marked(cli, small, trained):  # noqa: F811
    run = trained(
        cli, small, "bits", "model=vae", "likelihood=bernoulli", "dataset.binarize=static"
    )
    _, card = evaluated(cli, run, "metric=none", "score.importance_samples=10")
    assert card["test/nats_static_iwae_10"] > 0
    psnr = card["details"]["test/psnr"]["context"]
    assert psnr["values"] == "[0, 1], bits (static binarisation) and their expectations"
    assert (
        "not on the 8-bit scale" in card["details"]["test/nats_static_iwae_10"]["context"]["values"]
    )
    grey = doctored(
        run,
        run / "grey.ckpt",
        lambda checkpoint: checkpoint["config"]["dataset"].update(binarize=None),
    )
    _, card = evaluated(cli, grey, "metric=none", "reconstruction=null", output=run / "grey")
    assert "test/psnr" not in card
    line = (
        "likelihood skipped: Bernoulli is a likelihood of bits only, "
        "train with dataset.binarize=dynamic or static"
    )
    assert line in card["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_the_seed_of_an_evaluation_decides_not_that_of_the_run(cli, small, trained, how):  # noqa: F811
    run = trained(cli, small, how, "model=vae", "likelihood=bernoulli", f"dataset.binarize={how}")
    words = ["metric=none", "score.importance_samples=2"]
    other = doctored(
        run, run / "other.ckpt", lambda checkpoint: checkpoint["config"].update(seed=77)
    )
    cards = [
        evaluated(cli, path, *words, output=run / name)[1]
        for path, name in ((run, "a"), (other, "b"))
    ]
    assert numbers(cards[0]) == numbers(cards[1])
    seed = evaluated(cli, run, *words, "seed=5", output=run / "c")[1]
    assert seed[f"test/nats_{how}_elbo"] != cards[0][f"test/nats_{how}_elbo"]
    assert seed["test/elbo"] != cards[0]["test/elbo"]
    assert seed["details"]["test/elbo"]["context"]["seed"] == 5
    assert (seed["test/kl"] == cards[0]["test/kl"]) == (how == "static")  # its bits are the data's


def test_what_a_model_cannot_do_is_skipped_with_a_line(cli, small, trained):  # noqa: F811
    run = trained(cli, small, "ae", "model=ae")
    done, card = evaluated(cli, run)
    assert "generation metrics skipped: AutoEncoder has no prior to sample from" in card["notes"]
    assert any(note.startswith("likelihood skipped: AutoEncoder") for note in card["notes"])
    assert "test/psnr_compressed" in card
    for name in ("test/psnr", "test/ssim"):
        details = card["details"][name]
        assert details["error"] > 0
        assert (details["context"]["split"], details["context"]["n_images"]) == ("test", 360)
        assert reading(name, card) in done.out
    page = (run / "evaluation.md").read_text().replace("\\", "")  # its escapes
    assert "## Reconstruction" in page
    assert "kernel Gaussian 7 x 7, sigma 0.9545" in page
    assert "test/lpips" not in card


@pytest.mark.slow
def test_known_factors_are_looked_for(cli, small, trained, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "src.metric.disentanglement.Disentanglement.__init__.__defaults__", (300, 200, 16, 0)
    )
    sizes = "dataset.factor_sizes=[2,2,3,4,4]"
    run = trained(
        cli, small, "shapes", "model=vae", "dataset=shapes", "dataset.image_size=8", sizes
    )
    _, card = evaluated(cli, run, "metric=none", "score=null")
    for name in ("mig", "sap", "dci_disentanglement", "factor_vae_score", "beta_vae_score"):
        assert 0 <= card[f"test/{name}"] <= 1
    assert "test/mig" not in evaluated(cli, run, "metric=none", "score=null", "latents=false")[1]


@pytest.mark.slow
def test_codes_are_those_of_the_images_that_the_model_was_trained_on(
    cli,
    small,
    trained,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(
        "src.metric.disentanglement.Disentanglement.__init__.__defaults__", (300, 200, 16, 0)
    )
    words = [
        "dataset=shapes",
        "dataset.image_size=8",
        "dataset.factor_sizes=[2,2,3,4,4]",
        "dataset.binarize=static",
    ]
    run = trained(cli, small, "shapes bits", "model=vae", "likelihood=bernoulli", *words)
    seen, batch = [], ImageDataModule.batch
    monkeypatch.setattr(
        ImageDataModule, "batch", lambda *a: seen.append((a[1], batch(*a).x)) or batch(*a)
    )
    evaluated(cli, run, "metric=none", "score=null")
    assert {split for split, _ in seen} == {"train", "val", "test"}
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for _, x in seen)


@pytest.mark.parametrize("metric", options("metric"))
def test_every_metric_option_can_be_composed(composed, metric):
    assert "measures" in composed(f"metric={metric}").metric


@pytest.mark.slow
def test_two_ranks_evaluate_as_one(cli, small, trained, tmp_path):  # noqa: F811
    run = trained(cli, small, "ddpm", "model=ddpm")
    words = [
        f"ckpt_path={run}",
        *FAST,
        "batch_size=64",
        "sampler=dpm_solver",
        "sampler.num_steps=3",
        "metric=fast",
    ]
    assert cli("evaluate", *words, f"output={tmp_path}/one").code == 0
    words += ["trainer.strategy=ddp", "trainer.devices=2", f"output={tmp_path}/two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "src.evaluate", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")
    )
    assert two["context"]["processes"] == 2
    for name in numbers(one):
        loss = name.rpartition("/")[2] in ("loss", "mse")  # sums of batches of other sizes
        assert one[name] == pytest.approx(two[name], rel=1e-5 if loss else 1e-6), name
