"""Signals: the last step is kept, the exit code tells, and the run goes on as if unbroken."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from runs import assert_same, fault, latest, words
from support import slow, wait_until

from src.config.output import Patient
from src.errors import ConfigError, Interrupted
from src.training.interruption import Interruption

# (model, variant), (after so many steps, where, signal), exit code, step of the checkpoint
STOPS = [
    (("vae", "plain"), (3, "before_step", "usr1"), 143, 4),
    (("ddpm", "plain"), (3, "batch_start", "term"), 143, 4),
    (("vae", "plain"), (3, "batch_end", "int"), 130, 3),
    (("ddpm", "plain"), (5, "validation_batch", "term"), 143, 5),
    (("ddpm", "plain"), (6, "save", "term"), 143, 10),
    (("vae", "accumulated"), (3, "batch_start", "term"), 143, 4),
    (("ae", "epochs"), (3, "batch_end", "term"), 143, 3),
]


@pytest.mark.parametrize(("run", "place", "code", "kept"), STOPS[:1] + slow(STOPS[1:]))
def test_stopped_and_started_again(zygote, unbroken, tmp_path, run, place, code, kept):
    command = [
        *words(*run),
        f"hydra.run.dir={tmp_path / 'run'}",
        "resume=auto",
        "callback.checkpoint.every_steps=null",
    ]
    stopped = zygote.run("train", *command, fault(*place))
    assert (stopped.code, latest(tmp_path / "run")) == (code, kept), stopped.err
    assert stopped.err.count("\n") == 1
    assert stopped.err.startswith(f"error: stopped by SIG{place[2].upper()}"), stopped.err
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken(*run))


@pytest.mark.slow
def test_stopped_at_the_end_of_one_epoch_and_of_the_next(zygote, unbroken, tmp_path):
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    for step in (3, 5):
        assert zygote.run("train", *command, fault(step, "batch_start", "term")).code == 143
        assert latest(tmp_path / "run") == step + 1
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("vae", "plain"))


@pytest.mark.slow
def test_waiting_for_data_stops_at_once(zygote, unbroken, tmp_path):
    """The loader of the third batch hangs: what two steps have learnt is kept."""
    command = [
        *words("vae", "plain"),
        f"hydra.run.dir={tmp_path / 'run'}",
        "resume=auto",
        "callback.checkpoint.every_steps=null",
    ]
    job = zygote.start("train", *command, fault(2, "loading", "sleep"))
    wait_until(lambda: job.said("fault: sleep"))
    os.kill(job.pid, signal.SIGTERM)
    done = job.wait()
    assert done.code == 143
    assert "fault: over" not in done.out
    assert latest(tmp_path / "run") == 2
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("vae", "plain"))


def test_a_step_that_never_ends_is_left_behind(zygote, tmp_path):
    """SIGHUP before that stops nothing."""
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "grace_seconds=3"]
    job = zygote.start("train", *command, fault(4, "before_step", "sleep"))
    wait_until(lambda: job.said("fault: sleep"))
    os.kill(job.pid, signal.SIGHUP)
    wait_until(lambda: not pending(job.pid, signal.SIGHUP))
    begin = time.monotonic()
    os.kill(job.pid, signal.SIGTERM)
    done = job.wait()
    assert (done.code, latest(tmp_path / "run")) == (143, 4)
    assert time.monotonic() - begin > 1
    assert "fault: over" not in done.out
    assert "without waiting any longer; the last checkpoint stands" in done.err


def test_a_second_signal_stops_at_once(zygote, tmp_path):
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "grace_seconds=1000"]
    job = zygote.start("train", *command, fault(4, "before_step", "sleep"))
    wait_until(lambda: job.said("fault: sleep"))
    os.kill(job.pid, signal.SIGINT)
    wait_until(lambda: not pending(job.pid, signal.SIGINT))
    os.kill(job.pid, signal.SIGINT)
    done = job.wait()
    assert done.code == 130
    assert "fault: over" not in done.out


@pytest.mark.slow
def test_a_stop_after_training_loses_nothing(zygote, tmp_path):
    run_dir = tmp_path / "run"
    job = zygote.run(
        "train", *words("vae", "plain"), f"hydra.run.dir={run_dir}", fault(12, "test_start", "term")
    )
    assert (job.code, latest(run_dir)) == (143, 12)


@pytest.mark.parametrize("seconds", [1, -1, float("nan"), "ten"])
def test_a_grace_that_leaves_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match="grace_seconds"):
        Interruption().give(seconds)


def test_the_grace_is_kept(monkeypatch):
    """The process gives up before its grace of 3 s is over, and soon after a second signal."""
    given = []
    monkeypatch.setattr(
        "src.training.interruption._give_up", lambda signum, seconds, _: given.append(seconds)
    )
    own = Interruption()
    own.give(3)

    def interrupted_twice():
        with own.listening():
            own.busy = True
            _interrupt()
            wait_until(lambda: given == [1.5])
            _interrupt()

    with pytest.raises(Interrupted):
        interrupted_twice()
    wait_until(lambda: given == [1.5, 1.0])


def test_what_is_done_whole_is_not_divided():
    own, done = Interruption(), []

    def work():
        with own.deferred():
            own._on_signal(signal.SIGTERM, None)
            done.append(1)

    with pytest.raises(Interrupted):
        work()
    assert done == [1]
    assert not own.busy


STUCK = """
import os, signal, sys
from src.training.interruption import INTERRUPTION
INTERRUPTION.give(2)
with INTERRUPTION.listening():
    name = ()
    for _ in range(60):
        name = (name, name)
    print("hashing", flush=True)
    hash(name)
"""


def test_c_code_that_lets_nothing_run_ends_within_the_grace():
    """A hash of 2**60 parts holds the interpreter: no thread of the process sees the signal."""
    job = subprocess.Popen([sys.executable, "-c", STUCK], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert job.stdout.readline() == "hashing\n"
    time.sleep(0.2)
    begin = time.monotonic()
    job.terminate()
    _, said = job.communicate(timeout=20)
    assert job.returncode == -signal.SIGKILL
    assert 1 < time.monotonic() - begin < 3
    assert said == "error: stopped by a signal without an answer; the last checkpoint stands\n"


def test_busy_defers_and_idle_raises():
    own = Interruption()
    own.busy = own.may_leave = True
    own._on_signal(signal.SIGTERM, None)
    assert own.requested == signal.SIGTERM
    with pytest.raises(Interrupted), own.waiting():
        raise AssertionError("a request must be met before waiting begins")
    assert not own.busy


def pending(pid, signum):
    """Whether a process has yet to take a signal; a second one would be lost before."""
    masks = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Pnd" in line]
    return any(int(mask.split()[1], 16) >> (signum - 1) & 1 for mask in masks)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_with_workers(zygote, unbroken, tmp_path):
    """Ctrl-C, ``timeout`` and ``scancel`` signal the data workers as well.

    They must not mistake it for theirs.
    """
    command = [
        *words("vae", "plain"),
        "dataset.num_workers=2",
        f"hydra.run.dir={tmp_path / 'run'}",
        "resume=auto",
    ]
    stopped = zygote.run("train", *command, fault(3, "before_step", "group"))
    assert (stopped.code, latest(tmp_path / "run")) == (143, 4), stopped.err
    assert stopped.err.count("\n") == 1, stopped.err
    assert zygote.run("train", *command).code == 0
    assert_same(tmp_path / "run", unbroken("vae", "plain"))


def test_sampling_stops_with_its_code(zygote, unbroken, tmp_path):
    words = [
        f"ckpt_path={unbroken('ddpm', 'plain')}",
        f"output={tmp_path / 'out'}",
        "num_samples=1000000",
    ]
    job = zygote.start("sample", *words)
    wait_until(lambda: list((tmp_path / "out").rglob("*.npz")))
    os.kill(job.pid, signal.SIGTERM)
    done = job.wait()
    assert (done.code, done.err) == (143, "error: stopped by SIGTERM\n")


def test_a_reader_that_leaves_ends_nothing():
    """``python -m src.train | head -1``."""
    reader, mouth = os.pipe()
    os.close(reader)
    with os.fdopen(mouth, "w") as stream:
        out = Patient(stream)
        for _ in range(3):
            assert out.write("x" * 100_000) == 100_000
            out.flush()
        assert not out.isatty()


def test_a_caller_in_python_gets_its_handlers_back():
    # a process of the suite has none
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        own = Interruption()
        with pytest.raises(Interrupted), own.listening():
            _interrupt()
        assert own.requested is None
        with pytest.raises(KeyboardInterrupt):
            _interrupt()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt():
    signal.raise_signal(signal.SIGINT)
