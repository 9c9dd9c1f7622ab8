"""``trainer=debug``: the same run, cut short, that says what works and how long all takes."""

import json

import pytest

from src.callback import preflight
from src.callback.generation import Generation
from src.errors import ConfigError
from src.rundir.checkpoint import load_model


@pytest.fixture
def rehearse(cli, cache_dir):
    """Rehearse a small VAE."""
    quick = [
        "logger=csv",
        f"cache_dir={cache_dir}",
        "features.num_steps=30",
        "callback.progress.every_seconds=1000",
    ]

    def run(*words):
        return cli(
            "train", "experiment=digits_vae", "trainer=debug", *quick, "hydra.run.dir=run", *words
        )

    return run


def test_a_rehearsal_does_everything_and_tells_what_the_whole_would_need(rehearse, tmp_path):
    done = rehearse("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=6")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["step"] == 5
    assert metrics.keys() >= {"val/loss", "val/fid_classifier", "test/loss", "test/fid_classifier"}
    assert (tmp_path / "run" / "samples" / "final.png").exists()
    lines = done.out.partition("rehearsal of 5 steps passed\n")[2].splitlines()
    told = dict(line.split(maxsplit=1) for line in lines[:6])
    assert told["parameters"] == f"{metrics['parameters']:,}"
    assert told["memory"].endswith("GiB at most")
    assert " images/s, " in told["speed"]
    # the recipe's length, not that of the rehearsal
    assert told["real"].startswith("run    3000 steps, ")
    assert told["checkpoint"] == "read back, the same weights"
    assert told["monitored"] == "val/loss"


def test_without_a_last_step_or_a_checkpoint_it_says_so(rehearse):
    words = [
        "lr_schedule=constant",
        "trainer.max_steps=-1",
        "trainer.max_time=00:01:00:00",
        "metric=none",
    ]
    done = rehearse(*words, "callback.checkpoint=null")
    assert done.code == 0, done.err
    assert "real run    no last step of training" in done.out
    assert "checkpoint  none is written" in done.out


def test_a_monitored_name_that_is_not_logged_is_found(rehearse, monkeypatch):
    monkeypatch.setattr(Generation, "on_validation_epoch_end", lambda *args: None)
    done = rehearse("optimized_metric=val/fid_classifier", "callback.checkpoint.monitor=val/loss")
    assert done.code == 2
    assert "error: optimized_metric=val/fid_classifier: was not logged; " in done.err


def test_a_checkpoint_that_holds_other_weights_is_found(rehearse, monkeypatch):
    def spoiled(path):
        model = load_model(path)
        next(model.parameters()).data += 1e-6
        return model

    monkeypatch.setattr(preflight, "load_model", spoiled)
    done = rehearse("metric=none")
    assert done.code == 4
    assert "the checkpoint holds other weights" in done.err


def test_one_step_tells_no_speed():
    with pytest.raises(ConfigError, match="steps=1"):
        preflight.Preflight("val/loss", steps=1)
