"""The entry points, end to end: every model trains, resumes, reloads, samples and is evaluated."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import options
from PIL import Image
from support import slow

from src.model.base import CanSample
from src.rundir.checkpoint import load_model, read_checkpoint
from src.rundir.history import read_history
from src.train import train
from src.training.trainer import fill_length

ELSEWHERE = ("ddpm", "vae")  # models that faster tests train, resume and evaluate


@pytest.mark.parametrize(
    "model", [*slow(ELSEWHERE), *(name for name in options("model") if name not in ELSEWHERE)]
)
def test_every_model_trains_reloads_samples_and_is_evaluated(cli, small, tmp_path, model):
    run = tmp_path / "a run, with=signs"
    done = cli("train", f"model={model}", f"hydra.run.dir={run}", *small)
    assert done.code == 0, done.err
    assert "src.sample ckpt_path=" in done.out
    metrics = json.loads((run / "metrics.json").read_text())
    assert {
        "val/loss",
        "test/loss",
        "train/loss",
        "step",
        "parameters",
        "seconds",
        "train_seconds",
        "images_per_second",
    } <= metrics.keys()
    assert yaml.safe_load((run / "config.yaml").read_text())["provenance"]["overrides"]
    assert (run / "samples" / "curves.png").exists()
    reloaded = load_model(run)
    assert not reloaded.training
    sampled = cli(
        "sample", f"ckpt_path={run}", "num_samples=3", "images=true", f"output={tmp_path}/out"
    )
    if not isinstance(reloaded, CanSample):
        assert sampled.code == 2
        assert "has no prior" in sampled.err
        assert (run / "samples" / "reconstruction.png").exists()
        assert metrics["test/compression_ratio"] == 64 / 16
        return
    assert sampled.code == 0, sampled.err
    samples = np.load(tmp_path / "out" / "samples.npz")["samples"]
    assert samples.shape == (3, 8, 8, 1)
    assert samples.dtype == np.uint8
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "out" / "images" / "000002.png")), samples[2, :, :, 0]
    )
    evaluated = cli("evaluate", f"ckpt_path={run}", "trainer=cpu", "num_samples=4")
    assert evaluated.code == 0, evaluated.err
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    assert cli("evaluate", "ckpt_path=alone.ckpt", "trainer=cpu", "num_samples=4").code == 0
    assert (tmp_path / "evaluation.json").read_text() != (run / "evaluation.json").read_text()
    numbers = json.loads((run / "evaluation.json").read_text())
    assert {
        "val/loss",
        "test/loss",
        "test/fid_classifier_4",
        "test/fid_floor_classifier_360",
    } <= numbers.keys()


def test_train_is_importable_and_returns_the_optimised_metric(composed, small, tmp_path):
    value = train(
        composed(
            "model=vae",
            *small,
            "optimized_metric=test/elbo",
            "callback.checkpoint.monitor=val/loss",
        )
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert value == metrics["test/elbo"]
    assert metrics["test/elbo"] == pytest.approx(
        metrics["test/reconstruction"] - metrics["test/kl"], abs=1e-3
    )


def test_training_lowers_the_loss_and_two_runs_are_equal(composed, small, tmp_path):
    words = [
        "model=vae",
        "network=mlp_autoencoder",
        *small,
        "trainer.limit_train_batches=null",
        "callback.grid=null",
    ]
    values = [
        train(composed(*words, "trainer.max_steps=60", f"run_dir={tmp_path}/{i}")) for i in range(2)
    ]
    untrained = train(composed(*words, "optimizer.lr=1e-9", f"run_dir={tmp_path}/untrained"))
    assert values[0] == values[1] < untrained - 5


# words, steps of an epoch -> steps of the run, batches or share of an epoch between validations,
# epochs between them
LENGTHS = [
    (["trainer.max_steps=100"], 10, (100, 20, None)),
    (["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2"], 10, (30, 12, None)),
    (["trainer.max_epochs=4", "trainer.limit_train_batches=0.5"], 10, (20, 4, None)),
    (["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"], 10, (40, 1.0, 2)),
    (["trainer.max_epochs=4", "trainer.val_check_interval=0.5"], 10, (40, 0.5, 1)),
    (["trainer.max_steps=-1"], 10, (float("inf"), 1000, None)),
]


@pytest.mark.parametrize(("words", "epoch", "expected"), LENGTHS)
def test_length_and_validations(composed, words, epoch, expected):
    cfg = composed(*words)
    total = fill_length(cfg, epoch)
    assert (total, cfg.trainer.val_check_interval, cfg.trainer.check_val_every_n_epoch) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("model", "accumulate"), [("ddpm", 1), ("ddpm", 2), ("vae", 1)])
def test_a_resumed_run_ends_where_an_unbroken_one_does(cli, small, tmp_path, model, accumulate):
    words = [
        f"model={model}",
        *small,
        "trainer.limit_train_batches=null",
        "callback.generation=null",
    ]
    words += ["dataset.flip=true", "dataset.global_batch_size=600", "lr_schedule=constant"]
    words += [
        f"trainer.accumulate_grad_batches={accumulate}",
        f"trainer.val_check_interval={3 * accumulate}",
    ]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert cli("train", *words, "trainer.max_steps=5", f"hydra.run.dir={unbroken}").code == 0
    assert cli("train", *words, "trainer.max_steps=3", f"hydra.run.dir={broken}").code == 0
    again = cli("train", *words, "trainer.max_steps=5", f"hydra.run.dir={broken}", "resume=auto")
    assert again.code == 0, again.err
    assert "continuing from" in again.out
    one, two = (read_checkpoint(run) for run in (unbroken, broken))
    assert one["global_step"] == two["global_step"] == 5
    for part in ("state_dict", "ema") if model == "ddpm" else ("state_dict",):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    assert (broken / "metrics-1.csv").exists()
    assert (broken / "config-1.yaml").exists()


@pytest.mark.slow
def test_a_new_run_starts_from_a_state_or_from_weights(cli, small, tmp_path):
    run, third = tmp_path / "run", tmp_path / "third"
    assert cli("train", *small, f"hydra.run.dir={run}").code == 0
    second = (*small, f"hydra.run.dir={tmp_path}/2", "resume=auto")  # as a job of a sweep would
    assert cli("train", *second, f"ckpt_path={run}", "trainer.max_steps=2").code == 0
    assert read_checkpoint(tmp_path / "2")["global_step"] == 2
    assert read_history(tmp_path / "2")["val/loss"][0] == [0, 1, 2], (
        "the first step is history of the other run"
    )
    assert cli("train", *small, f"init_from={run}", f"hydra.run.dir={third}").code == 0
    assert read_checkpoint(third)["global_step"] == 1
    again = cli("train", *second, "init_from=nowhere", "trainer.max_steps=3")
    assert again.code == 0, again.err
    assert read_checkpoint(tmp_path / "2")["global_step"] == 3, "what a run has itself comes first"
    both = cli(
        "train", *small, f"init_from={run}", f"ckpt_path={run}", f"hydra.run.dir={tmp_path}/4"
    )
    assert both.code == 2
    assert "give only one" in both.err


@pytest.mark.slow
def test_a_sample_depends_on_seed_and_index_alone(cli, small, tmp_path):
    assert cli("train", *small, f"hydra.run.dir={tmp_path}/run").code == 0

    def draw(name, *words):
        done = cli("sample", f"ckpt_path={tmp_path}/run", f"output={tmp_path}/{name}", *words)
        assert done.code == 0, done.err
        return np.load(tmp_path / name / "samples.npz")["samples"].astype(int)

    few = ["sampler=ddpm", "sampler.num_steps=4"]
    one_by_one = draw("a", "num_samples=4", "batch_size=1", *few)
    assert np.abs(one_by_one - draw("b", "num_samples=6", "batch_size=4", *few)[:4]).max() <= 1
    assert np.array_equal(one_by_one, draw("c", "num_samples=4", "batch_size=1", *few))
    assert not np.array_equal(one_by_one, draw("d", "num_samples=4", "seed=1", *few))
    for sampler in options("sampler"):
        other = draw(sampler, "num_samples=2", f"sampler={sampler}", "sampler.num_steps=3")
        assert other.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_a_multirun_trains_each_job_in_a_directory_of_its_own(cli, small, tmp_path):
    words = [
        "-m",
        "model=ae,vae",
        f"hydra.sweep.dir={tmp_path}/sweep",
        *small,
        "callback.generation=null",
    ]
    done = cli("train", *words)
    assert done.code == 0, done.err
    folders = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert folders == ["0-ae-digits", "1-vae-digits", "jobs"]
    assert load_model(tmp_path / "sweep" / "1-vae-digits").latent_dim == 16


@pytest.mark.slow
def test_labels_flips_and_images_of_a_folder_reach_training(cli, small, tmp_path):
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / "pets, mine" / label).mkdir(parents=True)
        for i in range(60):
            pixels = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets, mine" / label / f"{i}.png")
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/pets, mine", "dataset.image_size=16"]
    words += ["dataset.num_workers=1", "dataset.flip=true", f"hydra.run.dir={tmp_path}/run"]
    done = cli("train", *small, *words)
    assert done.code == 0, done.err
    assert load_model(tmp_path / "run").sample(1).shape == (1, 3, 16, 16)
