"""W&B never stops a run and holds each of its steps once.

Whatever happens to the server, to W&B and to the run.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import wandb
import wandb_file
from conftest import ROOT
from support import PATIENCE, state, wait_until
from wandb.proto.wandb_internal_pb2 import Record
from wandb_server import serving

from src.logger import wandb_logger as wandb_run
from src.logger.wandb_file import HEADER, last_row, messages
from src.rundir.history import is_time, read_history
from src.training.module import GenerativeModule

HANGS = """
import pathlib, time
import src.logger.wandb_logger
import src.train
from src.training.module import GenerativeModule as Module
src.logger.wandb_logger.TIMEOUT = 600
def hang(module, *_):
    if module.trainer.global_step == {step} and \
not module.trainer.sanity_checking and module.trainer.{stage}:
        pathlib.Path({mark!r}).touch()
        time.sleep(600)
Module.on_train_batch_end = Module.on_validation_batch_start = hang
src.train.main()
"""
QUICK = {  # W&B writes and sends what it has every 15 s
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.05",
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # whole seconds
}


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch):
    """A W&B process of an earlier test would be shared with the processes that this one starts."""
    monkeypatch.setattr(wandb_run, "TIMEOUT", PATIENCE)  # a slow machine is no dead server
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def words(small):
    """A run of 12 steps that logs each, and validates after 4, 8 and 12."""
    words = [word for word in small if word != "logger=csv"] + ["model=ae", "logger=[csv,wandb]"]
    words += [
        "trainer.max_steps=12",
        "trainer.limit_train_batches=null",
        "trainer.val_check_interval=4",
    ]
    return [*words, "trainer.log_every_n_steps=1", "callback.generation=null", "callback.grid=null"]


@pytest.fixture
def online(monkeypatch):
    """Point W&B at an address, with less patience where a test is about that."""
    begin, given = wandb.init, []

    def init(mode, settings=None, **more):
        if mode == "online":
            given.append((settings.init_timeout, settings.finish_timeout))
            for name, seconds in less.items():
                setattr(settings, name, seconds)
        return begin(mode=mode, settings=settings, **more)

    less = {}
    monkeypatch.setattr(wandb, "init", init)

    def at(url, **patience):
        less.update(patience)
        account = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "x" * 40}
        for name, value in (account | QUICK).items():
            monkeypatch.setenv(name, value)

    yield at
    assert {*given} == {(PATIENCE, PATIENCE)}


def files_of(run_dir):
    return sorted(run_dir.glob("wandb/*run-*/run-*.wandb"))


def rows_of(file):
    """The history in a W&B file."""
    records = map(Record.FromString, messages(file.read_bytes()))
    return [
        wandb_file._items(record.history.item) for record in records if record.HasField("history")
    ]


def by_name(rows):
    """Name -> [(optimiser step, value), ...], of what the run itself has logged."""
    found = defaultdict(list)
    for row in rows:
        assert row["_step"] == row["trainer/global_step"]
        for name, value in row.items():
            if not name.startswith(("_", "trainer/global_step", "epoch", "reconstruction")):
                found[name].append((row["_step"], value))
    return found


def assert_complete(rows, run_dir):
    """Each number of metrics.csv is in W&B, once and in order.

    Of a step that was taken again W&B keeps the first time, metrics.csv the second.
    """
    history = read_history(run_dir)
    assert history["train/loss"][0] == list(range(12))
    assert history["val/loss"][0] == [3, 7, 11, 12]
    found = by_name(rows)
    assert found.keys() == history.keys()
    for name, (steps, values) in history.items():
        assert [step for step, _ in found[name]] == steps
        assert is_time(name) or [value for _, value in found[name]] == values


def kill(words, run_dir, ready, **when):
    """Start a run and kill it where it hangs, as soon as W&B is ``ready``."""
    mark = Path(f"{run_dir}.here")
    code = HANGS.format(mark=str(mark), **when)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, f"hydra.run.dir={run_dir}"],
        cwd=ROOT,
        env=os.environ | QUICK,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or (mark.exists() and ready()))
    finally:
        process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err


def go_on(cli, words, run_dir):
    done = cli("train", *words, f"hydra.run.dir={run_dir}", "resume=auto")
    assert done.code == 0, done.err
    assert "is dead" in done.out
    assert done.err == ""


def uploaded(*places):
    """The history that a server has after ``wandb sync`` of these directories."""
    with serving() as server:
        environment = {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "x" * 40,
            "WANDB_MODE": "online",
        }
        command = [sys.executable, "-m", "wandb", "sync", *places]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
        (rows,) = server.rows.values()
    return rows


@pytest.mark.slow
def test_a_killed_offline_run_goes_on_in_the_same_wandb_run(cli, words, tmp_path):
    """Killed between two checkpoints; its W&B file holds all that was logged.

    Or nothing, where it was not flushed yet.
    """
    run_dir, copy = tmp_path / f"größe = 1, {'lang' * 30}" / ("läuft " * 12), tmp_path / "copy"
    kill(words, run_dir, lambda: len(rows_of(*files_of(run_dir))) >= 8, step=11, stage="training")
    shutil.copytree(run_dir, copy, symlinks=True)
    for flushed in (True, False):
        go_on(cli, words, run_dir)
        first, second = files_of(run_dir)
        assert (
            first.name
            == second.name
            == f"run-{json.loads((run_dir / 'wandb.json').read_text())['id']}.wandb"
        )
        rows = rows_of(first), rows_of(second)
        assert len(rows[0]) >= 8 if flushed else not rows[0]
        assert last_row(run_dir, second.stem[len("run-") :]) == 12
        assert_complete([*rows[0], *rows[1]], run_dir)
        if flushed:
            assert_complete(uploaded(second.parent, first.parent), run_dir)
        shutil.rmtree(run_dir)
        copy.rename(run_dir) if flushed else None
        for file in files_of(run_dir):
            file.write_bytes(file.read_bytes()[:HEADER])


@pytest.mark.slow
def test_a_killed_online_run_goes_on_in_the_same_wandb_run(cli, words, tmp_path, online):
    """Killed in a validation: W&B has part of the history."""
    with serving() as server:
        online(server.url)
        kill(
            words,
            tmp_path / "run",
            lambda: sum(map(len, server.rows.values())) >= 7,
            step=8,
            stage="validating",
        )
        assert len(*server.rows.values()) == 7
        go_on(cli, words, tmp_path / "run")
        assert list(server.rows) == [
            json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
        ]
        assert_complete(*server.rows.values(), tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_fails_in_mid_run(cli, words, tmp_path, online, monkeypatch):
    """The run ends well and in time; what it prints brings everything to an empty server."""

    def fail(module, *_):
        if module.trainer.global_step == 6:
            wait_until(lambda: any(server.rows.values()))
            server.fails = True

    monkeypatch.setattr(GenerativeModule, "on_train_batch_end", fail)
    with serving() as server:
        online(server.url, finish_timeout=2)
        begin = time.monotonic()
        done = cli("train", *words, f"hydra.run.dir={tmp_path}/run")
        assert done.code == 0, done.err
        assert time.monotonic() - begin < PATIENCE
        (said,) = [line for line in done.out.splitlines() if "W&B" in line]
        assert said.startswith(
            "W&B has not taken everything (Timed out finishing run.): upload what it holds with `"
        )
        server.fails, taken, server.rows = False, server.rows, {}
        assert 0 < len(*taken.values()) < 8
        sync = shlex.split(re.search("`wandb (.*)`", said)[1])
        subprocess.run([sys.executable, "-m", "wandb", *sync], check=True, capture_output=True)
        assert_complete(*server.rows.values(), tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_never_answers(cli, words, tmp_path, online):
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        online(f"http://127.0.0.1:{black_hole.getsockname()[1]}", init_timeout=1)
        done = cli("train", *words, f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    (said,) = [line for line in done.out.splitlines() if "W&B" in line]
    file = files_of(tmp_path / "run")[0]  # beside what the attempt has left
    assert said.startswith("W&B cannot be reached or used (")
    assert said.endswith(f": logging offline; upload what it holds with `wandb sync {file.parent}`")
    assert_complete(rows_of(file), tmp_path / "run")


def test_a_closed_port(tmp_path, online, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    online(f"http://127.0.0.1:{port}", init_timeout=1)
    logger = wandb_run.wandb_logger(str(tmp_path), "x")
    assert "logging offline; upload what it holds with `wandb sync" in caplog.text
    logger.log_metrics({"a": 1.5}, step=3)
    # after 4 steps: of the row of step 3
    logger.log_image("picture", [np.zeros((2, 2, 3), dtype=np.uint8)], step=4)
    logger.finalize("success")
    wandb_run.close_wandb()
    (row,) = rows_of(files_of(tmp_path)[0])
    assert (row["_step"], row["a"], row["picture.count"]) == (3, 1.5, 1)


def test_a_wandb_process_that_dies(cli, words, tmp_path, monkeypatch):
    def kill_core(module, *_):
        if module.trainer.global_step == 5:
            os.kill(core, signal.SIGKILL)
            wait_until(lambda: state(core) in ("", "Z"))

    begin = wandb_run._begin

    def begin_and_look(settings):
        nonlocal core
        run = begin(settings)
        (core,) = [int(path.name) for path in Path("/proc").iterdir() if _is_core(path)]
        return run

    core = 0
    monkeypatch.setattr(wandb_run, "_begin", begin_and_look)
    monkeypatch.setattr(GenerativeModule, "on_train_batch_end", kill_core)
    done = cli("train", *words, f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    (said,) = [line for line in done.out.splitlines() if "W&B" in line]
    place = files_of(tmp_path / "run")[0].parent
    assert re.match(r"W&B has failed \(.*Connection .*\): no longer logging to it; upload ", said)
    assert said.endswith(f" what it holds with `wandb sync {place}`")
    assert read_history(tmp_path / "run")["train/loss"][0] == list(range(12))


def _is_core(path):
    try:
        name, parent = (path / "stat").read_text().split(" ")[1:4:2]
    except OSError:
        return False
    return name == "(wandb-core)" and int(parent) == os.getpid()


@pytest.mark.slow
def test_each_job_of_a_multirun_is_a_run_of_its_own(cli, words, tmp_path):
    done = cli(
        "train",
        "-m",
        *words,
        "trainer.max_steps=1",
        "seed=3,4",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    assert done.code == 0, done.err
    read = [wandb_file.read(*files_of(tmp_path / "sweep" / f"{job}-ae-digits")) for job in (0, 1)]
    assert [run.config["seed"] for run in read] == [3, 4]
    assert len({file.name for file in tmp_path.rglob("run-*.wandb")}) == 2
