"""A machine that gives out: disk, memory, data workers. What was saved stays good."""

import subprocess

import pytest
from runs import assert_same, fault, words
from support import slow

from src.rundir.checkpoint import read_checkpoint
from src.rundir.store import CheckpointStore, damage


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of so many bytes, which goes away with the test."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_with_more(
    zygote, unbroken, small_disk
):
    size = CheckpointStore(unbroken("vae", "plain") / "checkpoints").candidates()[0].stat().st_size
    place = small_disk(f"size={int(3.5 * size)}")
    command = [
        *words("vae", "plain"),
        f"hydra.run.dir={place / 'run'}",
        "resume=auto",
        "callback.checkpoint.keep=20",
    ]
    done = zygote.run("train", *command)
    assert done.code == 5, done.err
    assert done.err.startswith(f"error: cannot write {place}"), done.err
    assert "free some space" in done.err
    found = CheckpointStore(place / "run" / "checkpoints").candidates()
    assert found
    assert [damage(path) for path in found] == [""] * len(found)
    assert not list(place.rglob(".*.tmp"))
    small_disk("remount,size=200m")
    assert zygote.run("train", *command).code == 0
    assert_same(place / "run", unbroken("vae", "plain"))


def test_memory_that_runs_out(zygote, tmp_path):
    done = zygote.run(
        "train",
        *words("vae", "plain"),
        f"hydra.run.dir={tmp_path / 'run'}",
        fault(5, "batch_start", "memory"),
    )
    assert done.code == 7, done.err
    assert done.err.startswith("error: out of memory")
    assert "dataset.global_batch_size" in done.err
    assert read_checkpoint(tmp_path / "run")["global_step"] == 5


@pytest.mark.parametrize(
    ("what", "timeout", "message"),
    [
        ("kill", 600, "DataLoader worker"),
        *slow([("sleep", 2, "timed out after 2 seconds")]),
    ],
)
def test_a_worker_that_dies_or_hangs(zygote, tmp_path, what, timeout, message):
    settings = [
        "dataset.num_workers=1",
        f"dataset.worker_timeout={timeout}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = zygote.run("train", *words("vae", "plain"), *settings, fault(0, "loading", what))
    assert done.code == 8, done.err
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1, done.err
