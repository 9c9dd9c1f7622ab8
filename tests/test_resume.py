"""Exact resume: a run that is killed and started again ends with the bits of one that never was."""

import signal

import pytest
from runs import assert_same, content, differences, fault, words
from support import slow

from src.rundir.store import CheckpointStore, damage

KILLS = [  # model, variant, after so many steps, where
    ("vae", "plain", 0, "batch_start"),
    ("ddpm", "plain", 3, "before_step"),
    ("ae", "plain", 5, "validation_start"),
    ("ddpm", "plain", 5, "validation_batch"),
    ("vae", "plain", 5, "validation_end"),
    ("ddpm", "plain", 6, "save"),
    ("vae", "plain", 10, "link"),
    ("vae", "plain", 12, "test_start"),
    ("ddpm", "workers", 7, "batch_end"),
    ("vae", "half", 3, "batch_end"),
    ("vae", "accumulated", 3, "batch_start"),
    ("ddpm", "accumulated", 4, "validation_batch"),
    ("ae", "epochs", 4, "validation_batch"),
    ("vae", "epochs", 6, "save"),
    ("ddpm", "epochs", 11, "batch_end"),
]


def test_the_comparison_sees_a_step(unbroken):
    """Without this the tests below could not fail."""
    run_dir = unbroken("vae", "plain")
    earlier = CheckpointStore(run_dir / "checkpoints").candidates()[1]
    assert len(differences(content(run_dir), content(earlier))) > 20
    assert differences(content(run_dir), content(run_dir)) == []


@pytest.mark.parametrize(("model", "variant", "step", "where"), KILLS[:3] + slow(KILLS[3:]))
def test_killed_and_started_again(zygote, unbroken, tmp_path, model, variant, step, where):
    command = [*words(model, variant), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    killed = zygote.run("train", *command, fault(step, where))
    assert killed.code == -signal.SIGKILL, killed.err
    assert all(
        damage(path) == ""
        for path in CheckpointStore(tmp_path / "run" / "checkpoints").candidates()
    )
    resumed = zygote.run("train", *command)
    assert resumed.code == 0, resumed.err
    assert_same(tmp_path / "run", unbroken(model, variant))


@pytest.mark.slow
def test_killed_again_and_again(zygote, unbroken, tmp_path):
    command = [*words("ddpm", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    for step, where in ((2, "batch_end"), (4, "save"), (5, "validation_end"), (9, "before_step")):
        assert zygote.run("train", *command, fault(step, where)).code == -signal.SIGKILL
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("ddpm", "plain"))


@pytest.mark.slow
def test_going_on_in_another_directory(zygote, unbroken, tmp_path):
    """``ckpt_path`` leaves the first run alone; the second has its history and best checkpoint."""
    first, second = tmp_path / "first", tmp_path / "second"
    command = words("vae", "plain")
    assert (
        zygote.run("train", *command, f"hydra.run.dir={first}", fault(8, "batch_end")).code
        == -signal.SIGKILL
    )
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    done = zygote.run("train", *command, f"ckpt_path={first}", f"hydra.run.dir={second}")
    assert done.code == 0, done.err
    assert_same(second, unbroken("vae", "plain"))
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


@pytest.mark.slow
def test_a_history_is_never_half_written(zygote, unbroken, tmp_path):
    """A new column makes the whole file new: killed in the middle of that, nothing is lost."""
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    assert zygote.run("train", *command, fault(5, "rewrite")).code == -signal.SIGKILL
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("vae", "plain"))
