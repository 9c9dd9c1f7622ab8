"""Evaluations that cannot work, broken models, data, places: a line or null, no traceback."""

import json
import math

import pytest
from evaluated import FAST, doctored, evaluated, numbers, pictures, trained  # noqa: F401 (a fixture)
from support import slow

from src.evaluation.evaluation import Evaluation


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["num_samples=1"], 2, "num_samples=1: must be an integer >= 2"),
        (["num_samples=many"], 2, "num_samples=many: must be an integer >= 2"),
        (["batch_size=0"], 2, "batch_size=0: must be an integer >= 1"),
        (["batch_size=null"], 2, "batch_size=None: must be an integer >= 1"),
        (["seed=-1"], 2, "seed=-1"),
        (["trainer.precision=64-true"], 2, "trainer.precision=64-true: must be one of"),
        (["trainer.precision=16-mixed"], 2, "trainer.precision=16-mixed: needs a GPU"),
        (["trainer.devices=99"], 2, "trainer.devices=99: must be auto or from 1 to"),
        (["trainer.limit_test_batches=0"], 2, "trainer.limit_test_batches=0: must be batches"),
        (["latents=maybe"], 2, "latents=maybe: must be true or false"),
        (["score.batch_size=1.5"], 2, "score.batch_size=1.5: must be an integer"),
        (["score.importance_samples=0"], 2, "score.importance_samples=0: must be an integer >= 1"),
        (["score.num_images=1"], 2, "score.num_images=1"),
        (["score.timesteps=0"], 2, "score.timesteps=0"),
        (["metric.num_repeats=0"], 2, "metric.num_repeats=0"),
        (["metric=fidd"], 2, "there are fast, full, none"),
        (["features=inception", "features.weights=WEIGHTS"], 4, "SHA-256"),
    ],
)
def test_settings_that_cannot_work(cli, small, trained, tmp_path, words, code, message):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    (tmp_path / "weights.pth").write_bytes(b"other weights")
    words = [word.replace("WEIGHTS", str(tmp_path / "weights.pth")) for word in words]
    done = cli("evaluate", f"ckpt_path={run}", "trainer=cpu", "logger=[]", *words)
    assert done.code == code, done.err
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_cache_that_cannot_be_written_costs_time_only(cli, small, trained, tmp_path):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    (tmp_path / "file").write_text("")
    words = ["features=pixels", "metric=fast", "score=null", f"cache_dir={tmp_path}/file/cache"]
    done, card = evaluated(cli, run, *words)
    assert "not cached, the next evaluation computes them again" in done.out
    assert card["test/fid_pixels_300"] > 0


def _poison(checkpoint):
    for weights in (checkpoint["state_dict"], checkpoint.get("ema", {})):
        for value in weights.values():
            if value.is_floating_point():
                value.fill_(math.nan)


@pytest.mark.parametrize("model", ["vae", *slow(["ddpm"])])
def test_a_model_of_nan_has_nulls_with_reasons_and_the_floor(cli, small, trained, tmp_path, model):  # noqa: F811
    run = trained(cli, small, model, f"model={model}")
    words = ["features=pixels", "metric.measures.kid.max_images=50", "score.importance_samples=2"]
    words += ["sampler=ddim", "sampler.num_steps=2"] if model == "ddpm" else []
    healthy = evaluated(cli, run, *words, output=tmp_path / "healthy")[1]
    broken = evaluated(
        cli, doctored(run, tmp_path / "nan.ckpt", _poison), *words, output=tmp_path / "broken"
    )[1]
    floor = "test/fid_floor_pixels_360"
    assert broken[floor] == healthy[floor] > 0
    codes = {"test/active_units", "test/num_latents", "test/kl"}  # left out, with a note
    assert numbers(broken).keys() | codes == numbers(healthy).keys() | codes
    for name in numbers(broken).keys() - {floor}:
        assert broken[name] is None, name
        assert broken["details"][name]["reason"], name
    assert broken["details"]["test/loss"]["reason"] == "not finite (nan)"
    assert model == "ddpm" or any("latent quality skipped" in note for note in broken["notes"])


def test_a_test_split_of_one_image(cli, small, tmp_path):
    words = pictures(tmp_path / "images", train=20, val=1, test=1)
    assert (
        cli(
            "train", *small, *words, "model=vae", "callback.generation=null", "hydra.run.dir=run"
        ).code
        == 0
    )
    _, card = evaluated(
        cli, tmp_path / "run", "features=pixels", "num_samples=null", "score.num_images=null"
    )
    # as many as the test split has, but enough for a covariance
    assert card["test/fid_pixels_2"] > 0
    assert card["test/fid_floor_pixels_1"] is None
    reason = card["details"]["test/fid_floor_pixels_1"]["reason"]
    assert reason == "a covariance needs 2 or more images, it got 1"
    assert card["details"]["test/bits_per_dim_elbo"]["context"]["n_images"] == 1
    assert any("latent quality skipped" in note for note in card["notes"])


def test_a_training_split_of_one_image_and_none_of_labels(cli, small, tmp_path):
    small = [word for word in small if "global_batch_size" not in word]
    words = [*pictures(tmp_path / "images", train=1, val=1, test=3), "dataset.global_batch_size=1"]
    assert (
        cli(
            "train", *small, *words, "model=vae", "callback.generation=null", "hydra.run.dir=run"
        ).code
        == 0
    )
    done = cli("evaluate", "ckpt_path=run", *FAST, "features=pixels")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "the training split has 1 image" in done.err
    (tmp_path / "images" / "train" / "more.png").write_bytes(
        (tmp_path / "images/test/0.png").read_bytes()
    )
    done = cli("evaluate", "ckpt_path=run", *FAST)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "features=pixels, features=inception, or metric=none" in done.err
    for advice in ("metric=none", "features=pixels"):
        evaluated(cli, tmp_path / "run", "score=null", advice)


def test_an_output_that_cannot_be_written_is_noticed_first(
    cli,
    small,
    trained,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    run = trained(cli, small, "vae", "model=vae")
    monkeypatch.setattr(Evaluation, "card", lambda self: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x", "/proc"):
        done = cli("evaluate", f"ckpt_path={run}", *FAST, f"output={place}", "metric=none")
        assert done.code == 5, done
        assert f"output={place}" in done.err
        assert done.err.count("\n") == 1
    done = cli(
        "evaluate",
        f"ckpt_path={run}",
        *FAST,
        f"output={tmp_path}/new",
        "dataset.root=3",
        "metric=nope",
    )
    assert (done.code, (tmp_path / "new").exists()) == (2, False)


def test_the_home_directory_is_known(cli, small, trained, tmp_path, monkeypatch):  # noqa: F811
    run = trained(cli, small, "vae", "model=vae")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = cli("evaluate", f"ckpt_path={run}", *FAST, "output=~/card", "metric=none", "score=null")
    assert done.code == 0, done.err
    assert "test/loss" in json.loads((tmp_path / "home" / "card" / "evaluation.json").read_text())


def test_what_samples_nothing_needs_no_weights(cli, small, trained, tmp_path):  # noqa: F811
    words = ["features=inception", f"features.weights={tmp_path}/none.pth", "score=null"]
    assert "test/loss" in evaluated(cli, trained(cli, small, "ae", "model=ae"), *words)[1]
    assert (
        "test/loss"
        in evaluated(cli, trained(cli, small, "vae", "model=vae"), *words, "metric=none")[1]
    )
