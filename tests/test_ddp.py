"""Two processes train, sample and judge as one does."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from src.checkpoint import read_checkpoint


def test_two_ranks_equal_one(cli, small, tmp_path):
    words = [*small, "trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.limit_train_batches=null"]
    words += ["trainer.limit_val_batches=null", "trainer.limit_test_batches=null", "callback.generation.test_samples=5"]
    assert cli("train", *words, f"hydra.run.dir={tmp_path}/one").code == 0
    words += ["trainer.strategy=ddp", "trainer.devices=2", f"hydra.run.dir={tmp_path}/two"]
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *words], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Results after") == 1
    one, two = (read_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    assert max(float((one["ema"][name] - two["ema"][name]).abs().max()) for name in one["ema"]) < 1e-5
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    for name in ("val/loss", "test/loss", "test/fid_classifier", "test/fid_floor_classifier"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4), name
