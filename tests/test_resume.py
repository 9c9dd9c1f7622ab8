"""Exact resume: a run that is killed anywhere and started again ends with the same bits as one that never was."""

import json
import signal

import pytest
import torch
from faults import Fault
from zygote import Zygote

from src.checkpoint import read_checkpoint
from src.runtime.report import read_history
from src.store import CheckpointStore, damage

MODELS = {
    "ae": ["model=ae", "network=mlp_autoencoder"],
    "vae": ["model=vae", "network=mlp_autoencoder", "beta=linear"],
    "ddpm": ["model=ddpm", "network=mlp", "network.hidden=32", "schedule.num_timesteps=20", "sampler.num_steps=5"],
}
SHORT = (
    *("logger=csv", "callback.grid=null", "features=pixels", "metric=fast", "callback.generation.num_samples=8"),
    *("trainer.log_every_n_steps=1", "dataset.global_batch_size=480", "trainer.max_steps=12", "dataset.flip=true"),
    *("callback.generation.test_samples=8", "callback.generation.every=1", "callback.checkpoint.every_steps=2"),
)
# An epoch has 2 or 3 steps of 480 (digits has 1,078 training images and drops the rest), validations come every 5.
VARIANTS = {
    "plain": ["trainer.val_check_interval=5"],
    "workers": ["trainer.val_check_interval=5", "dataset.num_workers=2"],
    "accumulated": ["trainer.val_check_interval=8", "trainer.accumulate_grad_batches=4"],
    "epochs": ["trainer.val_check_interval=1.0", "trainer.max_steps=null", "trainer.max_epochs=6"],
}
KILLS = [  # model, variant, after so many steps, where
    ("vae", "plain", 0, "batch_start"),
    ("vae", "plain", 1, "batch_end"),
    ("ddpm", "plain", 3, "before_step"),
    ("ae", "plain", 5, "validation_start"),
    ("ddpm", "plain", 5, "validation_batch"),
    ("vae", "plain", 5, "validation_end"),
    ("ddpm", "plain", 6, "save"),
    ("vae", "plain", 10, "link"),
    ("ddpm", "workers", 7, "batch_end"),
    ("vae", "accumulated", 3, "batch_start"),
    ("ddpm", "accumulated", 4, "validation_batch"),
    ("ae", "epochs", 4, "validation_batch"),
    ("vae", "epochs", 6, "save"),
    ("ddpm", "epochs", 11, "batch_end"),
]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def unbroken(zygote, tmp_path_factory):
    """The run directory of a run that nothing happened to, made once for each model and variant."""
    known = {}

    def run(model, variant):
        if (model, variant) not in known:
            known[model, variant] = tmp_path_factory.mktemp("unbroken") / f"{model}-{variant}"
            done = zygote.run("train", *words(model, variant), f"hydra.run.dir={known[model, variant]}")
            assert done.code == 0, done.err
        return known[model, variant]

    return run


def words(model, variant):
    return [*MODELS[model], *SHORT, *VARIANTS[variant]]


def fault(step, where, what="kill"):
    return f"+callback.fault={{_target_:faults.Fault,step:{step},where:{where},what:{what}}}"


def content(run_dir):
    """Everything of the last checkpoint that may not depend on what happened on the way."""
    checkpoint = read_checkpoint(run_dir)
    callbacks = {name.split("{")[0]: state for name, state in checkpoint["callbacks"].items()}
    names = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: checkpoint.get(name) for name in names} | {"callbacks": callbacks}


def differences(one, two, path=""):
    """Paths of leaves that are not bit-equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(one.keys() | two.keys(), key=str)
        return [d for key in keys for d in differences(one.get(key), two.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    return [] if one == two else [f"{path}: {one} is not {two}"]


def assert_same(run_dir, reference):
    assert differences(content(run_dir), content(reference)) == []
    assert repr(read_history(run_dir)) == repr(read_history(reference)), "NaN is not NaN, but reads so"
    best = [sorted(path.name for path in (folder / "checkpoints").glob("best-*")) for folder in (run_dir, reference)]
    assert best[0] == best[1] != []
    first, second = (
        torch.load(folder / "checkpoints" / best[0][0], weights_only=True) for folder in (run_dir, reference)
    )
    assert differences(first["state_dict"], second["state_dict"]) == []
    mine, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (run_dir, reference))
    timed = ("seconds", "train_seconds", "images_per_second")
    mine, theirs = ({k: v for k, v in numbers.items() if k not in timed} for numbers in (mine, theirs))
    assert repr(mine) == repr(theirs)
    assert not list((run_dir / "checkpoints").glob(".*")), "leftovers of the killed process"


def test_the_comparison_sees_a_step(unbroken):
    """Without this the tests below could not fail."""
    run_dir = unbroken("vae", "plain")
    earlier = CheckpointStore(run_dir / "checkpoints").candidates()[1]
    assert len(differences(content(run_dir), content(earlier))) > 20
    assert differences(content(run_dir), content(run_dir)) == []


@pytest.mark.parametrize(("model", "variant", "step", "where"), KILLS)
def test_killed_and_started_again(zygote, unbroken, tmp_path, model, variant, step, where):
    command = [*words(model, variant), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    killed = zygote.run("train", *command, fault(step, where))
    assert killed.code == -signal.SIGKILL, killed.err
    assert all(damage(path) == "" for path in CheckpointStore(tmp_path / "run" / "checkpoints").candidates())
    resumed = zygote.run("train", *command)
    assert resumed.code == 0, resumed.err
    assert_same(tmp_path / "run", unbroken(model, variant))


def test_killed_again_and_again(zygote, unbroken, tmp_path):
    command = [*words("ddpm", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    for step, where in ((2, "batch_end"), (4, "save"), (5, "validation_end"), (9, "before_step")):
        assert zygote.run("train", *command, fault(step, where)).code == -signal.SIGKILL
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("ddpm", "plain"))


def test_a_fault_needs_a_place():
    with pytest.raises(AssertionError):
        Fault(1, "nowhere")
