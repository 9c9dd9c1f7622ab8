"""Small runs of every model, and what must be equal in two of them down to the last bit."""

import json

import torch

from src.rundir.checkpoint import read_checkpoint
from src.rundir.history import is_time, read_history

MODELS = {
    "ae": ["model=ae", "network=mlp_autoencoder"],
    "vae": ["model=vae", "network=mlp_autoencoder", "beta=linear"],
    "ddpm": [
        "model=ddpm",
        "network=mlp",
        "network.hidden=32",
        "schedule.num_timesteps=20",
        "sampler.num_steps=5",
    ],
}
SHORT = (
    *(
        "logger=csv",
        "callback.grid=null",
        "features=pixels",
        "metric=fast",
        "callback.generation.num_samples=8",
    ),
    *(
        "trainer.log_every_n_steps=1",
        "dataset.global_batch_size=480",
        "trainer.max_steps=12",
        "dataset.flip=true",
    ),
    *(
        "callback.generation.test_samples=8",
        "callback.generation.every=1",
        "callback.checkpoint.every_steps=2",
    ),
    *("grace_seconds=600", "trusted_packages=[faults,hold]"),
)
# An epoch has 2 or 3 steps of 480 (digits has 1,078 training images and drops the rest),
# validations come every 5.
VARIANTS = {
    "plain": ["trainer.val_check_interval=5"],
    "workers": ["trainer.val_check_interval=5", "dataset.num_workers=2"],
    "accumulated": ["trainer.val_check_interval=8", "trainer.accumulate_grad_batches=4"],
    "half": ["trainer.val_check_interval=5", "trainer.limit_train_batches=0.5"],
    "epochs": ["trainer.val_check_interval=1.0", "trainer.max_steps=null", "trainer.max_epochs=6"],
}


def words(model, variant):
    return [*MODELS[model], *SHORT, *VARIANTS[variant]]


def fault(step, where, what="kill", rank=0):
    return (
        f"+callback.fault={{_target_:faults.Fault,step:{step},where:{where},"
        f"what:{what},rank:{rank}}}"
    )


def timeless(numbers):
    """What must be equal in two equal runs."""
    return {name: value for name, value in numbers.items() if not is_time(name)}


def content(run_dir):
    """Everything of the last checkpoint that may not depend on what happened on the way."""
    checkpoint = read_checkpoint(run_dir)
    callbacks = {name.split("{")[0]: state for name, state in checkpoint["callbacks"].items()}
    for name, state in callbacks.items():
        callbacks[name] = timeless(state)
    names = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: checkpoint.get(name) for name in names} | {"callbacks": callbacks}


def differences(one, two, path=""):
    """Paths of leaves that are not bit-equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(one.keys() | two.keys(), key=str)
        return [d for key in keys for d in differences(one.get(key), two.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            d
            for i, (a, b) in enumerate(zip(one, two, strict=True))
            for d in differences(a, b, f"{path}/{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    # NaN is not NaN, but reads so
    return [] if repr(one) == repr(two) else [f"{path}: {one} is not {two}"]


def latest(run_dir):
    """The step of the newest checkpoint, 0 before the first."""
    try:
        return json.loads((run_dir / "checkpoints" / "latest.json").read_text())["step"]
    except FileNotFoundError:
        return 0


def assert_same(run_dir, reference):
    assert differences(content(run_dir), content(reference)) == []
    assert repr(timeless(read_history(run_dir))) == repr(timeless(read_history(reference))), (
        "NaN is not NaN, but reads so"
    )
    rows = [{n: steps for n, (steps, _) in read_history(f).items()} for f in (run_dir, reference)]
    assert rows[0] == rows[1]
    best = [
        sorted(path.name for path in (folder / "checkpoints").glob("best-*"))
        for folder in (run_dir, reference)
    ]
    assert best[0] == best[1] != []
    first, second = (
        torch.load(folder / "checkpoints" / best[0][0], weights_only=True)
        for folder in (run_dir, reference)
    )
    assert differences(first["state_dict"], second["state_dict"]) == []
    mine, theirs = (
        json.loads((folder / "metrics.json").read_text()) for folder in (run_dir, reference)
    )
    assert repr(timeless(mine)) == repr(timeless(theirs))
    assert not list((run_dir / "checkpoints").glob(".*")), "leftovers of the killed process"
