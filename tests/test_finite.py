"""Losses and gradients that are not finite: found at their step, never trained on or saved."""

import json
import re

import pytest
import torch
from runs import differences, fault, words
from support import slow

from src.callback.finite import Finite
from src.errors import ConfigError, NonFiniteError
from src.rundir.checkpoint import read_checkpoint
from src.rundir.checkpoint_io import AtomicCheckpointIO
from src.rundir.history import read_history


def finite(content):
    if isinstance(content, dict):
        return all(map(finite, content.values()))
    if isinstance(content, list):
        return all(map(finite, content))
    return not isinstance(content, torch.Tensor) or bool(content.isfinite().all())


@pytest.mark.parametrize(
    ("model", "variant", "where"),
    [("ddpm", "plain", "batch_start"), *slow([("vae", "accumulated", "after_backward")])],
)
def test_the_run_ends_at_that_step_with_a_record(zygote, unbroken, tmp_path, model, variant, where):
    run_dir = tmp_path / "run"
    command = [
        *words(model, variant),
        f"hydra.run.dir={run_dir}",
        "resume=auto",
        "callback.checkpoint.every_steps=1",
    ]
    done = zygote.run("train", *command, fault(7, where, "poison"))
    assert done.code == 6
    assert re.fullmatch(
        r"error: train/loss=\S+ or its gradient at step 7 \(optimizer.lr=\S+, images .*\n", done.err
    ), done.err
    assert read_checkpoint(run_dir)["global_step"] == 7, (
        "the state before the step is the last good one"
    )
    assert all(finite(read_checkpoint(path)) for path in (run_dir / "checkpoints").glob("*.ckpt"))
    record = json.loads((run_dir / "nonfinite-00000007" / "record.json").read_text())
    batches = torch.load(run_dir / "nonfinite-00000007" / "batch.pt", weights_only=True)
    assert (
        (record["step"], len(record["losses"]))
        == (7, len(batches))
        == (7, 4 if variant == "accumulated" else 1)
    )
    assert (record["losses"][-1] is None) == (where == "batch_start")
    images = record["images"][-1]
    assert len(images["indices"]) == len(batches[-1][0])
    assert images["noise"]["last"] - images["noise"]["first"] == len(images["indices"])
    assert ("t" in images) == (model == "ddpm")
    assert any(layer["gradient"] is None for layer in record["layers"].values())
    assert all(layer["weight"] > 0 for layer in record["layers"].values() if layer["weight"])
    assert "on_nonfinite=raise" in record["replay"]
    assert f"ckpt_path={run_dir}/checkpoints/step-00000007.ckpt" in record["replay"]
    assert "trainer.max_steps=12" in record["replay"]
    assert zygote.run("train", *command).code == 0, "without the fault the same command goes on"
    assert (
        differences(
            read_checkpoint(run_dir)["state_dict"],
            read_checkpoint(unbroken(model, variant))["state_dict"],
        )
        == []
    )


@pytest.mark.slow
def test_skipping_leaves_the_weights_alone_and_goes_on(zygote, tmp_path):
    command = [
        *words("ddpm", "plain"),
        "on_nonfinite=skip",
        "callback.checkpoint.every_steps=1",
        "callback.checkpoint.keep=20",
    ]
    done = zygote.run(
        "train", *command, f"hydra.run.dir={tmp_path / 'run'}", fault(7, "after_backward", "poison")
    )
    assert done.code == 0, done.err
    before, after, later = (
        read_checkpoint(tmp_path / "run" / f"checkpoints/step-{n:08d}.ckpt") for n in (7, 8, 9)
    )
    assert differences(before["state_dict"], after["state_dict"]) == []
    assert len(differences(after["state_dict"], later["state_dict"])) > 3
    assert finite(later)
    assert read_history(tmp_path / "run")["train/skipped"][1][-1] == 1
    assert (tmp_path / "run" / "nonfinite-00000007" / "record.json").exists()


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    content = {
        "state_dict": {"model.a": torch.ones(3), "model.b": torch.tensor([1.0, float("inf")])},
        "global_step": 5,
    }
    with pytest.raises(NonFiniteError, match=r"model\.b: holds NaN or infinity after step 5"):
        AtomicCheckpointIO({}).save_checkpoint(content, tmp_path / "step.ckpt")
    assert not list(tmp_path.iterdir())


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="policy=ignore: must be raise or skip"):
        Finite(tmp_path, "ignore")
