"""Callbacks: the average that is evaluated, its steps and metrics, checkpoints, progress."""

import csv
import json
import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb_file
from PIL import Image

from src.callback.checkpoint import Checkpoint
from src.callback.ema import EMA
from src.callback.generation import Generation
from src.callback.grid import Grid
from src.callback.save_policy import SavePolicy
from src.callback.state_writer import StateWriter
from src.dataset.base import ImageData
from src.errors import ConfigError
from src.features.base import Features
from src.metric.fid import Fid
from src.metric.generation import GenerationMetrics
from src.model.base import GenerativeModel
from src.noise import randn
from src.rundir.checkpoint import load_model, read_checkpoint
from src.train import train
from src.training.data import ImageDataModule
from src.training.module import GenerativeModule


class LossAlone(GenerativeModel):
    """All that a model must have; its weight rises by the learning rate at every step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def loss(self, x, label=None, generator=None):
        return {"loss": -self.weight}


class OneNumber(LossAlone):
    """It samples images of its weight."""

    def sample(self, num, label=None, generator=None):
        return self.weight + 0.1 * randn((num, 1, 2, 2), generator)


class Mean(Features):
    """The mean grey value and its neighbour: enough to see which weights drew a sample."""

    name, num_features, key = "mean", 4, "mean"

    def _extract(self, images):
        return images.flatten(1)


def distances(**settings):
    return Generation(Mean(), GenerationMetrics({"fid": Fid()}), seed=0, **settings)


def run(callbacks, steps=6, batch=8, model=None, **trainer):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 2, 2), dtype=torch.uint8)
    data = ImageDataModule(
        lambda split: ImageData(images, torch.zeros(32).long()), (1, 2, 2), batch, seed=0
    )
    model = model or OneNumber()
    module = GenerativeModule(model, torch.optim.SGD(model.parameters(), lr=0.1))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    fit = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        **(quiet | trainer),
    )
    fit.fit(module, data)
    return fit, module, data


def averaged(decay, steps):
    average, weight = 0.0, 0.0
    for n in range(steps):
        weight += 0.1
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * weight
    return average


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_its_formula(decay):
    ema = EMA(decay)
    _, module, _ = run([ema])
    assert float(ema.average["weight"]) == pytest.approx(averaged(decay, 6), abs=1e-6)
    assert float(module.model.weight) == pytest.approx(0.6)


def test_the_average_counts_optimiser_steps_not_micro_batches():
    once, often = EMA(0.9), EMA(0.9)
    run([once])
    run([often], accumulate_grad_batches=4)
    assert once.updates == often.updates == 6
    assert torch.allclose(once.average["weight"], often.average["weight"])


class Watch(pl.Callback):
    """Records the weight at every hook of a validation and when training goes on."""

    def __init__(self):
        self.validating, self.training = [], []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validating.append(float(pl_module.model.weight))

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.training.append(float(pl_module.model.weight))

    on_test_epoch_end = on_validation_epoch_end


def test_validation_and_test_see_the_average_and_training_never_does():
    watch = Watch()
    fit, module, data = run([EMA(0.5), watch], val_check_interval=2)
    fit.test(module, data, verbose=False)
    expected = [averaged(0.5, n) for n in (2, 4, 6, 6)]
    assert watch.validating == pytest.approx(expected, abs=1e-6)
    assert watch.training == pytest.approx([0.1 * n for n in range(6)], abs=1e-6)
    assert float(module.model.weight) == pytest.approx(0.6)


def test_a_model_with_a_loss_alone_has_no_pictures(tmp_path):
    fit, module, data = run([Grid(tmp_path)], model=LossAlone(), val_check_interval=2)
    fit.test(module, data, verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_the_generation_metric_really_sees_the_average():
    def distance(decay):
        callback = distances(num_samples=64)
        fit, module, data = run(
            [EMA(decay), callback], steps=8, val_check_interval=8, check_val_every_n_epoch=None
        )
        return float(fit.callback_metrics["val/fid_mean"])

    raw_weight, average = 0.8, averaged(0.999, 8)
    assert abs(average - raw_weight) > 0.05
    assert distance(0.0) > distance(0.999) * 1.02  # nearer to the data's mean grey


def test_a_sample_does_not_depend_on_batch_size():
    results = []
    for batch_size in (7, 64):
        callback = distances(num_samples=40, batch_size=batch_size)
        fit, _, _ = run([callback], steps=2, val_check_interval=2)
        results.append(float(fit.callback_metrics["val/fid_mean"]))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_a_diverged_model_gives_nan_and_a_reason(caplog, monkeypatch):
    monkeypatch.setattr(
        OneNumber, "sample", lambda self, num, generator: torch.full((num, 1, 2, 2), torch.nan)
    )
    fit, _, _ = run([distances(num_samples=8)], steps=2, val_check_interval=2)
    assert np.isnan(float(fit.callback_metrics["val/fid_mean"]))
    assert "val/fid_mean: features of the generated images hold NaN" in caplog.text


@pytest.mark.parametrize(("every", "measured"), [(1, [2, 4, 6, 8, 10]), (2, [2, 6, 10])])
def test_every_other_validation_is_measured_beginning_with_the_first(every, measured):
    steps = []

    class Recording(Generation):
        def _measure(self, trainer, *args, **kwargs):
            steps.append(trainer.global_step)
            super()._measure(trainer, *args, **kwargs)

    callback = Recording(Mean(), GenerationMetrics({"fid": Fid()}), 8, seed=0, every=every)
    run([callback], steps=10, val_check_interval=2)
    assert steps == measured
    assert callback.state_dict() == {"validations": 5}


@pytest.mark.parametrize(
    ("settings", "step", "seconds", "due"),
    [
        ({"every_steps": 3}, 6, 0, True),
        ({"every_steps": 3}, 7, 0, False),
        ({"every_steps": 3, "every_minutes": None}, 7, 1e9, False),
        ({"every_minutes": 0.5}, 7, 29, False),
        ({"every_minutes": 0.5}, 7, 31, True),
        ({"every_steps": 3, "every_minutes": 0.5}, 7, 31, True),
        ({"every_minutes": None}, 6, 1e9, False),
    ],
)
def test_when_an_interval_is_over(settings, step, seconds, due):
    assert SavePolicy(**settings).is_due(step, seconds) is due


@pytest.mark.parametrize("reason", ["due", "requested", "over", "validates"])
def test_any_reason_is_enough_to_save(reason):
    none = dict.fromkeys(("due", "requested", "over", "validates"), False)
    assert not SavePolicy().saves(**none)
    assert SavePolicy().saves(**none | {reason: True})


REFUSED = [
    ({"every_steps": 0}, "every_steps=0: must be an integer >= 1, or null"),
    ({"every_steps": 1.5}, "every_steps=1.5: must be an integer >= 1, or null"),
    ({"every_minutes": 0}, "every_minutes=0: must be > 0, or null"),
    ({"every_minutes": np.inf}, "every_minutes=inf: must be > 0, or null"),
    ({"mode": "best"}, "mode=best: must be min or max"),
    ({"keep": 0}, "keep=0: must be an integer >= 1"),
    ({"monitor": "loss"}, "monitor=loss: must be logged at validations"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_of_checkpoints_are_checked(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        Checkpoint(**{"dirpath": str(tmp_path), "monitor": "val/loss"} | settings)


@pytest.mark.parametrize(
    ("mode", "bests"), [("min", [2, 1, -4]), ("max", [2, 3, 7])], ids=["min", "max"]
)
def test_the_best_value_is_the_extreme_one(tmp_path, mode, bests):
    writer = StateWriter(tmp_path, mode, keep=1)
    values = [np.nan, 2, 2, 1, 3, np.inf, -np.inf, 7, -4, 0]
    found = []
    for value in values:
        if writer.is_new_best(value):
            writer.best = value
            found.append(value)
    assert found == bests


@pytest.mark.parametrize(("mode", "step"), [("min", 6), ("max", 2)])
def test_the_best_checkpoint_by_mode(tmp_path, mode, step):
    """The validation loss falls at every step."""
    callback = Checkpoint(str(tmp_path), "val/loss", mode, keep=1)
    run([callback], val_check_interval=2, enable_checkpointing=True)
    written = tmp_path / "checkpoints"
    assert [path.name for path in written.glob("best-*")] == [f"best-{step:08d}.ckpt"]
    best = torch.load(written / f"best-{step:08d}.ckpt", weights_only=True)
    state = best["callbacks"]["Checkpoint"]
    assert state.keys() == {"best", "validates", "seconds", "metrics"}
    assert state["best"] == pytest.approx(-0.1 * step)
    assert not state["validates"]


def test_a_run_writes_what_it_says(composed, small, tmp_path):
    words = [
        *small,
        "trainer.max_steps=4",
        "trainer.limit_train_batches=null",
        "trainer.val_check_interval=3",
    ]
    train(composed(*words, "trainer.log_every_n_steps=1"))
    run_dir = tmp_path / "run"
    names = {p.name for p in (run_dir / "samples").iterdir()}
    assert names == {"step-00000003.png", "final.png", "denoising.png", "curves.png"}
    for name in names:
        assert np.asarray(Image.open(run_dir / "samples" / name)).std() > 5
    kept = {
        "best-00000003.ckpt",
        "step-00000003.ckpt",
        "step-00000004.ckpt",
        "last.ckpt",
        "latest.json",
    }
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == kept
    assert read_checkpoint(run_dir)["global_step"] == 4
    assert load_model(run_dir / "checkpoints" / "best-00000003.ckpt").sample(1).shape == (
        1,
        1,
        8,
        8,
    )
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]
    assert "train.log" in {p.name for p in run_dir.iterdir()}
    assert (
        json.loads((run_dir / "metrics.json").read_text(), parse_constant=pytest.fail)["step"] == 4
    )


def test_plain_progress_has_losses_speed_and_time_left(composed, small, caplog):
    with caplog.at_level(logging.INFO, "src"):
        words = ["model=ae", *small, "trainer.max_steps=30", "trainer.limit_train_batches=null"]
        train(
            composed(*words, "callback.progress.every_seconds=1e-9", "trainer.log_every_n_steps=1")
        )
    lines = [record.message for record in caplog.records if record.message.startswith("step ")]
    assert lines
    assert all("steps/s" in line and "ETA" in line and "train/loss" in line for line in lines[1:])
    assert any(record.message.startswith("validation at step") for record in caplog.records)


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_API_KEY", "abc"), ("WANDB_MODE", "foo"), ("WANDB_MODE", "")]
)
def test_wandb_never_stops_a_run(composed, small, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv(name, value)
    words = [w for w in small if w != "logger=csv"] + [
        "logger=wandb",
        "callback.generation=null",
        "callback.grid=null",
    ]
    assert train(composed("model=ae", *words)) > 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_wandb_is_logged_offline_and_can_be_read_back(composed, small, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    train(
        composed(
            "model=vae",
            *[w for w in small if w != "logger=csv"],
            "logger=[csv,wandb]",
            "trainer.log_every_n_steps=1",
        )
    )
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    read = wandb_file.read(file)
    assert {"train/loss", "val/loss", "test/fid_classifier", "samples.count"} <= read.history
    assert read.config["model"]["_target_"] == "src.model.vae.VAE"
    assert read.config["dataset"]["image_shape"] == [1, 8, 8]
    assert read.summary["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "last.ckpt")
