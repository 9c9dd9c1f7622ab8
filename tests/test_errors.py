"""Bad input: one line with the setting, its value and what is allowed.

The exit code is the right one, and nothing is left behind.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from support import PATIENCE, slow

from src.config.explain import explain
from src.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MemoryExhaustedError,
    NonFiniteError,
    StorageError,
)

CONFIG = [
    (
        ["model=dpm"],
        "model=dpm: no such option; did you mean ddpm?; there are ae, beta_vae, ddpm, vae",
    ),
    (["schedule=nope"], "there are cosine, linear, quadratic, sigmoid"),
    (
        ["model=vae", "schedule=cosine"],
        "schedule=cosine: nothing in this configuration uses the group 'schedule'",
    ),
    (["modle=vae"], "modle=vae: there is no setting 'modle'; did you mean model?"),
    (["trainer.max_step=3"], "did you mean trainer.max_steps?"),
    (["scheduel.num_timesteps=3"], "did you mean schedule.num_timesteps?"),
    (["schedule.num_timesteps=0"], "schedule.num_timesteps=0: must be an integer from 1 to 100000"),
    (["schedule.num_timesteps=abc"], "schedule.num_timesteps=abc: must be an integer"),
    (
        ["schedule=linear", "schedule.beta_start=0.5"],
        "schedule.beta_end=0.02: must be between beta_start=0.5 and 1",
    ),
    (
        ["schedule=linear", "schedule.beta_start=-1"],
        "schedule.beta_start=-1: must be inside (0, 1)",
    ),
    (
        ["sampler.num_steps=1001"],
        "sampler.num_steps=1001: must be between 1 and num_timesteps=1000",
    ),
    (["sampler.num_steps=0"], "sampler.num_steps=0"),
    (["model=vae", "model.latent_dim=0"], "model.latent_dim=0"),
    (["dataset=mnist", "network=unet", "dataset.root=x"], "image size 28x28 is not divisible by 8"),
    (
        ["dataset.global_batch_size=5000"],
        "dataset.global_batch_size=5000: must be at most the 1257 images",
    ),
    (["dataset.global_batch_size=0"], "dataset.global_batch_size=0"),
    (
        ["trainer.accumulate_grad_batches=3"],
        "dataset.global_batch_size=128: must be divisible by 3",
    ),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0"),
    (["dataset.binarize=maybe"], "dataset.binarize=maybe: must be null, static or dynamic"),
    (["trainer=gpu"], "this machine has no GPU; use trainer=cpu"),
    (["trainer.precision=7"], "trainer.precision=7: must be one of"),
    (["trainer.max_steps=0"], "trainer.max_steps=0"),
    (["trainer.max_epochs=-3"], "trainer.max_epochs=-3"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1"),
    (["optimizer.lr=-1"], "optimizer.lr=-1: must be > 0"),
    (["callback.ema.decay=1.5"], "callback.ema.decay=1.5"),
    (["callback.generation.num_samples=1"], "callback.generation.num_samples=1: must be >= 2"),
    (["seed=-1"], "seed=-1: must be an integer from 0"),
    (["trainer.gradient_clip_val=abc"], "trainer.gradient_clip_val=abc: must be a number or null"),
    (["trainer.val_check_interval=0"], "trainer.val_check_interval=0: must be batches"),
    (
        ["trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=5"],
        "check_val_every_n_epoch=2: must be null",
    ),
    (
        ["trainer.strategy=fsdp"],
        "trainer.strategy=fsdp: must be one of auto, ddp, DDPStrategy: every rank holds all",
    ),
    (
        ["trainer.precision=bf16-true"],
        "trainer.precision=bf16-true: must be one of 32-true, bf16-mixed, 16-mixed",
    ),
    (["dataset.global_batch_size=abc"], "dataset.global_batch_size=abc: must be an integer"),
    (["model=vae", "model.latent_dim=1.5"], "model.latent_dim=1.5: must be an integer"),
    (["optimized_metric=val/nope"], "optimized_metric=val/nope: must be one of test/"),
    (["optimized_metric=val/los"], "; did you mean val/loss?"),
    (
        ["metric.measures.kid=[5]"],
        "metric.measures.kid=[5]: Cannot merge DictConfig with ListConfig",
    ),
    (
        ["model=vae", "sampler.eta=1"],
        "sampler.eta=1: nothing in this configuration uses the group 'sampler'",
    ),
    (
        ["optimized_metric=val/fid_classifier", "callback.generation=null"],
        "optimized_metric=val/fid_classifier",
    ),
    (["+logger.csv.bogus=1"], "logger.csv"),
    (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0: must be an integer >= 1"),
    (["resume=yes"], "resume="),
    (
        ["schedule=cosine", "schedule.beta_end=2"],
        "'schedule.beta_end'; there are num_timesteps, offset, max_beta",
    ),
    (["model.colour=red"], "model.colour=red: there is no setting 'model.colour'"),
    (["+model.colour=red"], "colour"),
    (["optimized_metric=test/loss"], "optimized_metric=test/loss: must be logged at validations"),
    (["dataset=image_folder"], "dataset.root: must be given"),
    (
        ["lr_schedule=cosine", "trainer.max_steps=-1", "trainer.max_time=00:00:01:00"],
        "lr_schedule=cosine: needs the number of steps",
    ),
]


@pytest.mark.parametrize(("words", "message"), CONFIG[:12] + slow(CONFIG[12:]))
def test_a_bad_setting_is_refused_before_anything_is_made(cli, cache_dir, tmp_path, words, message):
    if torch.cuda.is_available() and words == ["trainer=gpu"]:
        pytest.skip("this machine has a GPU")
    words = [*words, "logger=csv", f"cache_dir={cache_dir}", "hydra.run.dir=run"]
    done = cli(
        "train",
        *([*words, "trainer.max_steps=1"] if not any("max_" in w for w in words) else words),
    )
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def folder(tmp_path, content):
    directory = tmp_path / "images"
    directory.mkdir()
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return directory


def picture(tmp_path):
    path = tmp_path / "some.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


def test_data_that_is_not_there(cli, tmp_path):
    folder(tmp_path, {})
    for words, message in (
        (["dataset=image_folder", "dataset.root=images"], "holds no image"),
        (["dataset=image_folder", "dataset.root=nowhere"], "nowhere"),
        (["dataset.image_shape=[1,16,16]"], "dataset.image_shape=[1, 16, 16]"),
    ):
        done = cli("train", *words, "hydra.run.dir=run")
        assert done.code == 3, done
        assert message in done.err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, *slow([1])])
def test_a_corrupt_image_is_named(cli, small, tmp_path, workers):
    good = picture(tmp_path)
    folder(
        tmp_path,
        {f"{i:03d}.png": good if i % 30 else good[: len(good) // 2] for i in range(1, 181)},
    )
    words = [
        "dataset=image_folder",
        "dataset.root=images",
        "dataset.image_size=8",
        "callback.generation=null",
    ]
    words += [
        "trainer.max_steps=20",
        "trainer.limit_train_batches=null",
        "trainer.val_check_interval=20",
    ]
    done = cli("train", *small, *words, f"dataset.num_workers={workers}", "hydra.run.dir=run")
    assert done.code == 3, done
    assert "cannot read image images/" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_features_without_labels_name_both_ways_out(cli, small, tmp_path):
    good = picture(tmp_path)
    folder(tmp_path, {f"{i}.png": good for i in range(160)})
    words = ["dataset=image_folder", "dataset.root=images", "dataset.image_size=8"]
    done = cli("train", *small, *words, "hydra.run.dir=run")
    assert done.code == 3
    assert "features=inception" in done.err
    assert "metric=none" in done.err
    assert not (tmp_path / "run").exists()


def test_no_network_for_a_download(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", _unreachable)
    done = cli("train", "dataset=mnist", "dataset.root=data", "hydra.run.dir=run")
    assert done.code == 3
    assert "dataset.root=" in done.err
    done = cli("train", "features=inception", "hydra.run.dir=run", "features.weights=missing.pth")
    assert done.code == 3
    assert "missing.pth" in done.err
    assert not (tmp_path / "run").exists()


def _unreachable(*args, **kwargs):
    raise OSError("Network is unreachable")


def test_checkpoints_that_do_not_fit(cli, small, tmp_path):
    assert (
        cli("train", "model=vae", *small, "callback.generation=null", "hydra.run.dir=vae").code == 0
    )
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "empty").mkdir()
    half = (tmp_path / "vae/checkpoints/last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(half[: len(half) // 2])
    for entry, words, message in (
        (
            "train",
            ["init_from=vae", "model=ddpm"],
            "do not fit a model with model vae -> diff",
        ),
        ("train", ["init_from=nowhere"], "init_from=nowhere: no such file or run directory"),
        ("sample", ["ckpt_path=nowhere"], "ckpt_path=nowhere: no such file or run directory"),
        ("sample", ["ckpt_path=empty"], "the directory has no checkpoints/"),
        ("sample", ["ckpt_path=text.ckpt"], "text.ckpt: not a checkpoint"),
        ("evaluate", ["ckpt_path=half.ckpt"], "half.ckpt: not a checkpoint, or a damaged one"),
        ("sample", ["ckpt_path=https://example.org/x.ckpt"], "addresses are refused"),
    ):
        done = cli(entry, *words, *(small if entry == "train" else []))
        assert done.code == 4, done
        assert message in done.err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for entry, words, message in (
        ("sample", ["ckpt_path=vae", "num_samples=0"], "num_samples=0"),
        ("sample", ["ckpt_path=vae", "sampler=heun"], "uses the group 'sampler'"),
        (
            "sample",
            ["ckpt_path=vae", "model.latent_dim=3"],
            "of the run itself sampler, features, metric and dataset.root",
        ),
        ("sample", ["ckpt_path=vae", "output=taken"], "output=taken: already holds files"),
        ("sample", [], "ckpt_path: must be given"),
        ("evaluate", ["ckpt_path=vae", "dataset.flip=true"], "and dataset.root can be changed"),
        ("train", [*small, "hydra.run.dir=vae"], "already in use"),
        (
            "train",
            [*small, "model=ddpm", "ckpt_path=vae"],
            "made with other settings: model vae -> diffusion",
        ),
    ):
        done = cli(entry, *words)
        assert done.code == 2, done
        assert message in done.err


def test_a_sampler_of_the_run_is_checked_like_any_other(cli, small, tmp_path):
    assert cli("train", *small, "callback.generation=null", "hydra.run.dir=run").code == 0
    for words, message in (
        (["sampler=nope"], "there are ddim, ddpm, dpm_solver, heun"),
        (
            ["sampler.num_steps=2000"],
            "sampler.num_steps=2000: must be between 1 and num_timesteps=1000",
        ),
        (["sampler.steps=20"], "no setting 'sampler.steps'; did you mean sampler.num_steps?"),
    ):
        done = cli("sample", "ckpt_path=run", *words)
        assert done.code == 2, done
        assert message in done.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a=1: must be 2"), 2, "a=1: must be 2"),
        (DataError("x"), 3, "x"),
        (StorageError("x"), 5, "x"),
        (NonFiniteError("x"), 6, "x"),
        (MemoryExhaustedError("x"), 7, "x"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 7, "dataset.global_batch_size"),
        (MemoryError(), 7, "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed"), 8, "dataset.num_workers=0"),
        (
            OSError(28, "No space left on device", "/run/x"),
            5,
            "No space left on device: /run/x; free some space",
        ),
        (Interrupted(signal.SIGINT), 130, "stopped by SIGINT"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError"),
    ],
)
def test_exit_codes(error, code, text):
    found, message = explain(error, ROOT / "conf", "train", [])
    assert found == code
    assert text in message


def test_a_diverging_loss_ends_the_run(cli, small, tmp_path):
    words = [
        "trainer.max_steps=50",
        "trainer.limit_train_batches=null",
        "trainer.gradient_clip_val=null",
    ]
    done = cli(
        "train",
        "model=vae",
        *small,
        *words,
        "optimizer.lr=1e30",
        "callback.generation=null",
        "callback.grid=null",
    )
    assert done.code == 6
    assert "lower optimizer.lr" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_codes(tmp_path, cache_dir, signum, code):
    words = [
        "model=vae",
        "logger=csv",
        "trainer=cpu",
        "trainer.max_steps=100000",
        "callback.generation=null",
    ]
    words += [f"hydra.run.dir={tmp_path}/run", "callback.progress.every_seconds=0.2"]
    words += ["grace_seconds=600"]
    command = [sys.executable, "-u", "-m", "src.train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    line = process.stdout.readline()
    while line and not line.startswith("step"):
        line = process.stdout.readline()
    process.send_signal(signum)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert err.strip().splitlines()[-1].startswith("error: ")
