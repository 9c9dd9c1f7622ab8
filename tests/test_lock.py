"""Run directories: one live run in each, and only where something can be written."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from support import PATIENCE, state, wait_until

from src.errors import ConfigError, StorageError
from src.rundir.directory import check_free, check_writable, output_directory, run_directory
from src.rundir.lock import NAME, locked

HOLD = """
import sys
from pathlib import Path
from src.rundir.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_holding(directory):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        cwd=ROOT,
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    """A live process that holds the lock of ``tmp_path``."""
    process = start_holding(tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def run_in(directory, resumed=False):
    return run_directory(OmegaConf.create({"run_dir": str(directory)}), {"seed": 0}, resumed)


def test_a_live_owner_is_noticed_early_by_the_first_rank_alone(holder, tmp_path, monkeypatch):
    check_free(tmp_path / "new", resumed=False)
    with pytest.raises(StorageError, match=f"in use by process {holder.pid} on"):
        check_free(tmp_path, resumed=True)
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "1")
            check_free(tmp_path, resumed=False)


def test_a_used_directory_is_noticed_early(tmp_path):
    (tmp_path / "metrics.csv").touch()
    check_free(tmp_path, resumed=True)
    with pytest.raises(ConfigError, match="already in use"):
        check_free(tmp_path, resumed=False)


def test_a_live_owner_keeps_others_out(holder, tmp_path):
    written = json.loads((tmp_path / NAME).read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written["time"])
    used = f"in use by process {holder.pid} on {socket.gethostname()} since {written['time']}; "
    for resumed in (False, True):
        with (
            pytest.raises(StorageError, match=re.escape(f"hydra.run.dir={tmp_path}: {used}")),
            run_in(tmp_path, resumed),
        ):
            pass
    assert json.loads((tmp_path / NAME).read_text()) == written
    assert {path.name for path in tmp_path.iterdir()} == {NAME}
    holder.communicate("end\n")
    with run_in(tmp_path):
        pass


def test_the_lock_of_a_killed_owner_is_taken_over(holder, tmp_path, caplog):
    holder.kill()  # and not waited for: a zombie is dead as well
    wait_until(lambda: state(holder.pid) == "Z")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert [record.message for record in caplog.records] == [
        f"hydra.run.dir={tmp_path}: taken over from process {holder.pid}, which is dead"
    ]
    assert not (tmp_path / NAME).exists()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path, caplog):
    with locked(tmp_path):
        mine = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(mine | {"start": "another boot 17"}))
    with locked(tmp_path):
        pass
    assert "taken over" in caplog.text


def test_an_earlier_attempt_of_the_same_job_elsewhere_is_dead(tmp_path, monkeypatch, caplog):
    """Slurm requeues a job on another node.

    The lock of its first node is no obstacle, that of another job is.
    """
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(tmp_path):
        mine = json.loads((tmp_path / NAME).read_text())
    elsewhere = mine | {"host": "far-away"}
    for other in (
        elsewhere,
        elsewhere | {"job": "slurm-16", "attempt": 0},
        elsewhere | {"job": None},
    ):
        (tmp_path / NAME).write_text(json.dumps(other))
        with pytest.raises(StorageError, match="on far-away"), locked(tmp_path):
            pass
    (tmp_path / NAME).write_text(json.dumps(elsewhere | {"attempt": 0}))
    with locked(tmp_path):
        pass
    assert "taken over" in caplog.text


def test_a_lock_that_was_never_written_does_not_stay_for_ever(tmp_path, caplog):
    (tmp_path / NAME).touch()
    os.utime(tmp_path / NAME, (time.time() - 100,) * 2)
    with locked(tmp_path):
        pass
    assert "had no time to say" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"host": "far-away", "pid": 1, "start": "x", "time": "t"}',
            "in use by process 1 on far-away since t; if that",
        ),
        ("", "in use by an unknown process; if no run is alive in it"),
        ("[]", "in use by an unknown process"),
    ],
)
def test_what_cannot_be_judged_is_left_to_the_user(tmp_path, text, words):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(StorageError, match=words) as error, locked(tmp_path):
        pass
    assert f"delete {tmp_path / NAME}" in str(error.value)
    assert (tmp_path / NAME).read_text() == text


def test_of_many_starters_one_gets_a_dead_lock(tmp_path, monkeypatch):
    """Between judging and removing, every other starter is given all the time in the world."""
    process = start_holding(tmp_path)
    process.stdout.readline()
    process.kill()
    process.communicate()
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **options: (time.sleep(0.05), unlink(path, **options))
    )
    together, inside, refused = threading.Barrier(8), [], []

    def start():
        together.wait()
        try:
            with locked(tmp_path):
                inside.append(1)
                everyone_tried.wait(PATIENCE)
        except StorageError as error:
            refused.append(str(error))
            if len(refused) == 7:
                everyone_tried.set()

    everyone_tried = threading.Event()
    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1
    assert len(refused) == 7


def test_of_simultaneous_starts_under_one_name_one_runs(tmp_path):
    """Should the random endings of two default names be equal, the second start is refused."""
    processes = [start_holding(tmp_path) for _ in range(6)]
    try:
        winners = []
        for process in processes:
            if process.stdout.readline():
                winners.append(process)
        assert len(winners) == 1
        losers = [process.communicate()[1] for process in processes if process not in winners]
        assert all("in use by" in err for err in losers)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_run_that_fails_early_leaves_nothing(tmp_path):
    def fail(directory, made=()):
        with run_in(directory):
            for name in made:
                (directory / name).mkdir()
            assert {path.name for path in directory.iterdir()} == {
                NAME,
                "config.yaml",
                "train.log",
                *made,
            }
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b").exists()
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "run", ["checkpoints"])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints",
        "config.yaml",
        "train.log",
    }
    with pytest.raises(ConfigError, match="already in use"), run_in(tmp_path / "run"):
        pass
    with run_in(tmp_path / "run", resumed=True):
        logging.getLogger("src").warning("again")
    line = (tmp_path / "run" / "train.log").read_text().splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ W again", line)
    assert {path.name for path in (tmp_path / "run").glob("config*")} == {
        "config.yaml",
        "config-1.yaml",
    }


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of 8 KB, or one that is read-only."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mount: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError,
        match=f"hydra.run.dir={tmp_path}/file/run: .* in {tmp_path}/file .Not a directory",
    ):
        check_writable(tmp_path / "file" / "run", "hydra.run.dir")
    check_writable(tmp_path / "new" / "run", "output")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("options", "why"), [("size=4k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_full_and_read_only_disks(small_disk, cli, small, options, why):
    disk = small_disk(options)
    if options != "ro":
        (disk / "full").write_bytes(bytes(4096))
    before = list(disk.iterdir())
    done = cli("train", *small, f"hydra.run.dir={disk}/run")
    assert done.code == 5
    assert done.err.startswith(
        f"error: hydra.run.dir={disk}/run: nothing can be written in {disk} ({why})"
    )
    with pytest.raises(
        StorageError,
        match=re.escape(f"output={disk}/samples: nothing can be written in {disk} ({why})"),
    ):
        output_directory(disk / "samples", overwrite=False)
    assert list(disk.iterdir()) == before
