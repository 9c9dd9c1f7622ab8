"""What a start imports: what it needs, and nothing else."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from sklearn.datasets import load_digits

from src.dataset import digits

SHOW = "import sys; sys.stderr.write('IMPORTED ' + ' '.join(sys.modules))"
ENTRY = f"""
import atexit, runpy, sys
def show():
    {SHOW}
atexit.register(show)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
HEAVY = {"torch", "numpy", "pytorch_lightning", "wandb", "matplotlib", "sklearn", "optuna"}
OWN = {"src.launch", "src.report", "src.training.assembly", "src.model"}
NEEDLESS = {"scipy", "sklearn", "torchvision", "torch_fidelity", "optuna", "pandas", "tensorboard"}
NEEDLESS |= {"torchmetrics.functional", "torchmetrics.image", "src.launch", "src.sweep"}
NEEDLESS |= {"src.comparison", "torch.utils.tensorboard"}
LEAVE = "callback.leave.on_train_batch_end"
TO_THE_FIRST_STEP = (
    "trusted_packages=[pytorch_lightning,leaving]",
    "+callback.leave._target_=pytorch_lightning.callbacks.LambdaCallback",
    *(f"+{LEAVE}._target_=leaving.leave", f"+{LEAVE}._partial_=true"),
)


def python(*words, path=ROOT, **variables):
    """Run Python in the repository, in which modules of ``path`` can be imported as well."""
    variables |= {"PYTHONPATH": str(path), "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | variables,
    )


def imported(done):
    return {*done.stderr.rpartition("IMPORTED ")[2].split()}


def rows(images, labels):
    """A row of 64 pixels and the label for each image."""
    return np.column_stack([np.asarray(images).reshape(-1, 64), np.asarray(labels)])


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--help"]], ids=" ".join)
def test_an_answer_about_the_configuration_imports_nothing_heavy(words):
    modules = imported(python("-c", ENTRY, "src.train", *words))
    assert "src.config.cli" in modules
    assert (HEAVY | OWN) & modules == set()


def test_a_training_imports_up_to_its_first_step_what_it_needs(tmp_path):
    leave = f"import os\ndef leave(*_):\n    {SHOW}; sys.stderr.flush(); os._exit(0)\n"
    (tmp_path / "leaving.py").write_text(leave)
    words = [*TO_THE_FIRST_STEP, "features.num_steps=30", f"run_dir={tmp_path}/run"]
    modules = imported(python("-m", "src.train", *words, path=tmp_path))
    assert {"torch", "wandb", "src.callback.generation", "src.features.classifier"} <= modules
    assert NEEDLESS & modules == set()


def test_digits_are_those_of_scikit_learn():
    parts = [digits.load(None, split) for split in ("train", "val", "test")]
    known = load_digits()
    grey = np.round(known.images * 255 / 16).astype(np.uint8)
    ours = np.concatenate([rows(part.images, part.labels) for part in parts])
    theirs = rows(grey, known.target)
    assert (np.unique(ours, axis=0) == np.unique(theirs, axis=0)).all()
    assert len(ours) == len(theirs)


def test_torchmetrics_is_whole_where_more_of_it_is_asked():
    code = """
import sys
from src.config.quick import split_torchmetrics
split_torchmetrics()
import pytorch_lightning, torchmetrics
assert "torchmetrics.functional" not in sys.modules
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio
assert issubclass(PeakSignalNoiseRatio, Metric)
assert issubclass(torchmetrics.Accuracy, Metric) or torchmetrics.Accuracy(task="binary")
assert torchmetrics.Metric is Metric and "Accuracy" in torchmetrics.__all__
"""
    python("-c", code)


def test_a_torchmetrics_that_cannot_be_split_is_imported_as_ever(tmp_path):
    (tmp_path / "torchmetrics" / "utilities").mkdir(parents=True)
    package = tmp_path / "torchmetrics" / "__init__.py"
    package.write_text("answer = 42\nfrom torchmetrics.utilities import question\n")
    inner = "from torchmetrics import answer\nquestion = answer\n"
    (tmp_path / "torchmetrics" / "utilities" / "__init__.py").write_text(inner)
    split = "from src.config.quick import split_torchmetrics; split_torchmetrics()"
    code = f"{split}; import torchmetrics; print(torchmetrics.question)"
    assert python("-c", code, path=tmp_path).stdout == "42\n"
