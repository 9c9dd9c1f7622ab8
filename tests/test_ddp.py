"""Several processes do what one does, whoever starts them; what cannot work is refused."""

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import fault, timeless, words
from support import PATIENCE, slow, state, wait_until

from src.config.machine import check_machine
from src.errors import ConfigError
from src.parallel.process import prepare_process
from src.rundir.checkpoint import read_checkpoint
from src.rundir.history import read_history

CPU = ("trainer=ddp", "trainer.accelerator=cpu")


def start(zygote, world, entry, *words, **environment):
    """The jobs of ``world`` processes that are started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0} | environment
    settings = (*CPU, f"trainer.devices={world}") if world > 1 else ("trainer=cpu",)
    return [
        zygote.start(
            entry,
            *words,
            *settings,
            **{k: str(v) for k, v in shared.items()},
            RANK=str(r),
            LOCAL_RANK=str(r),
        )
        for r in range(world)
    ]


def ranks(*words, **environment):
    """What each of the processes did."""
    return [job.wait() for job in start(*words, **environment)]


def numbers(run_dir):
    found = json.loads((run_dir / "metrics.json").read_text())
    return {name: math.nan if value is None else value for name, value in timeless(found).items()}


def assert_close(run_dir, reference):
    """Equal to rounding: every weight, every point of every curve, every final number.

    FID and bits/dim are among them.
    """
    one, two = read_checkpoint(run_dir), read_checkpoint(reference)
    weights = [content.get("ema") or content["state_dict"] for content in (one, two)]
    assert one["global_step"] == two["global_step"]
    assert (
        max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-5
    )
    mine, theirs = (
        {k: v for k, v in timeless(read_history(folder)).items() if "/" in k}
        for folder in (run_dir, reference)
    )
    assert mine.keys() == theirs.keys()
    assert {"train/loss", "val/loss"} <= mine.keys()
    for name, (steps, values) in theirs.items():
        assert mine[name][0] == steps
        assert mine[name][1] == pytest.approx(values, rel=2e-4, abs=1e-6, nan_ok=True), name
    assert numbers(run_dir) == pytest.approx(numbers(reference), rel=2e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("model", ["vae", *slow(["ae", "ddpm"])])
def test_two_ranks_equal_one(zygote, unbroken, tmp_path, model):
    """Training, validation and test, with batches that do not come out even.

    There are 359 validation and 360 test images, in batches of 240.
    """
    place = tmp_path / "run"
    done = ranks(zygote, 2, "train", *words(model, "plain"), f"hydra.run.dir={place}")
    assert [rank.code for rank in done] == [0, 0], done[0].err + done[1].err
    assert [rank.out.count("Results after") for rank in done] == [1, 0]
    assert_close(place, unbroken(model, "plain"))


@pytest.mark.slow
def test_two_ranks_with_accumulation_equal_one(zygote, unbroken, tmp_path):
    done = ranks(
        zygote, 2, "train", *words("vae", "accumulated"), f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert [rank.code for rank in done] == [0, 0], done[0].err
    assert_close(tmp_path / "run", unbroken("vae", "accumulated"))


@pytest.mark.slow
def test_a_stopped_run_of_one_goes_on_with_two(zygote, unbroken, tmp_path):
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    assert zygote.run("train", *command, fault(7, "batch_start", "term")).code == 143
    done = ranks(zygote, 2, "train", *command)
    assert [rank.code for rank in done] == [0, 0], done[0].err + done[1].err
    assert "(step 8)" in done[0].out
    assert_close(tmp_path / "run", unbroken("vae", "plain"))


@pytest.mark.slow
def test_two_ranks_evaluate_and_sample_as_one_does(zygote, unbroken, tmp_path):
    run = unbroken("ddpm", "plain")
    settings = [
        "score.num_images=101",
        "score.timesteps=3",
        "num_samples=33",
        "batch_size=8",
        "logger=csv",
    ]
    cards, samples = {}, {}
    for world in (1, 2):
        place = tmp_path / str(world)
        done = ranks(zygote, world, "evaluate", f"ckpt_path={run}", *settings, f"output={place}")
        assert {rank.code for rank in done} == {0}, done[0].err
        cards[world] = json.loads((place / "evaluation.json").read_text())
        done = ranks(
            zygote,
            world,
            "sample",
            f"ckpt_path={run}",
            "num_samples=20",
            "batch_size=8",
            f"output={place}/s",
        )
        assert {rank.code for rank in done} == {0}, done[0].err
        samples[world] = np.load(place / "s" / "samples.npz")["samples"]
    assert (samples[1] == samples[2]).all()
    one, two = (
        {k: v for k, v in card.items() if isinstance(v, float) and "second" not in k}
        for card in cards.values()
    )
    assert {"test/bits_per_dim", "test/fid_pixels_33", "val/loss"} <= one.keys(), one.keys()
    assert one == pytest.approx(two, rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_ends_the_others_in_time(zygote, tmp_path, rank):
    command = [
        *words("vae", "plain"),
        f"hydra.run.dir={tmp_path / 'run'}",
        "trainer.strategy.timeout.seconds=20",
    ]
    begin = time.monotonic()
    jobs = start(zygote, 2, "train", *command, fault(7, "batch_start", "stop", rank))
    done = jobs[1 - rank].wait()
    took = time.monotonic() - begin
    os.kill(jobs[rank].pid, signal.SIGKILL)
    assert jobs[rank].wait().code == -signal.SIGKILL
    assert (done.code, done.err.count("\n")) == (8, 1), done.err
    assert "another rank of this job is gone or does not answer" in done.err
    assert took < PATIENCE


@pytest.mark.slow
def test_torchrun_with_a_new_run_directory(tmp_path):
    """Every rank composes the configuration, with its own time and suffix: one of them counts."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
    ]
    command = [*torchrun, "src.train", *words("vae", "plain"), *CPU, "trainer.devices=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    runs = list(tmp_path.glob("outputs/*/*"))
    assert len(runs) == 1
    assert {"config.yaml", "metrics.json", "checkpoints"} <= {
        path.name for path in runs[0].iterdir()
    }
    assert str(runs[0].relative_to(tmp_path)) in done.stdout


def test_a_batch_that_ranks_cannot_share_is_refused_by_all(zygote, tmp_path):
    done = ranks(
        zygote,
        2,
        "train",
        *words("vae", "plain"),
        "dataset.global_batch_size=33",
        "hydra.run.dir=x",
    )
    assert [rank.code for rank in done] == [2, 2]
    for rank in done:
        assert rank.err.startswith(
            "error: dataset.global_batch_size=33: must be divisible by 2 (2 devices x "
        )


@pytest.mark.slow
def test_ranks_with_other_settings_are_refused(zygote, tmp_path):
    """As where a file or a variable of one node differs: the ranks would wait for ever."""
    command = [*words("vae", "plain"), f"hydra.run.dir={tmp_path}/x"]
    done = ranks(zygote, 2, "train", *command, "seed='${oc.decode:${oc.env:RANK}}'")
    assert [rank.code for rank in done] == [2, 2]
    assert done[0].err.startswith("error: seed=1: of rank 1, where rank 0 has 0; give all ")
    assert not (tmp_path / "x").exists()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "x"}


@pytest.mark.parametrize("job", [TORCHRUN, SLURM])
@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (1, 2), (1, 4), ("auto", 1)])
def test_another_number_of_processes_than_were_started_is_refused(
    composed, monkeypatch, job, devices, nodes
):
    cfg = composed(*CPU, "trainer.devices=2", "trainer.num_nodes=2")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    check_machine(cfg.trainer)
    cfg.trainer.devices, cfg.trainer.num_nodes = devices, nodes
    advice = (
        "has started 4 processes, 2 on a node; "
        "give trainer=ddp trainer.devices=2 trainer.num_nodes=2"
    )
    with pytest.raises(
        ConfigError, match=f"trainer.devices={1 if devices == 'auto' else devices} .*{advice}"
    ):
        check_machine(cfg.trainer)


@pytest.mark.parametrize(
    ("words", "job", "message"),
    [
        (
            ["trainer.num_nodes=2", "trainer.devices=1"],
            {},
            "trainer.num_nodes=2: this process was started alone",
        ),
        (["trainer.devices=2"], {"SLURM_NTASKS": "2"}, "--ntasks=2: .*give --ntasks-per-node"),
        (["trainer.devices=99"], {}, "trainer.devices=99: must be auto or from 1 to"),
        (
            ["trainer.strategy.timeout.seconds=0"],
            {},
            "trainer.strategy.timeout.seconds=0: must be a number of seconds",
        ),
    ],
)
def test_what_cannot_work_is_refused(composed, monkeypatch, words, job, message):
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check_machine(composed(*CPU, *words).trainer)


def test_processes_within_a_process_of_a_sweep_are_refused(composed, monkeypatch):
    node = composed(*CPU, "trainer.devices=2").trainer
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"mode": RunMode.MULTIRUN}))
    with pytest.raises(
        ConfigError, match="trainer.devices=2: jobs of --multirun .* use launcher=local"
    ):
        check_machine(node)


def test_a_rank_ends_with_the_process_that_started_it_even_when_it_stands_still(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    read, write = os.pipe()
    starter = os.fork()
    if starter == 0:
        if os.fork() == 0:
            prepare_process()
            os.write(write, str(os.getpid()).encode())
            os.kill(os.getpid(), signal.SIGSTOP)
        signal.pause()
    os.close(write)
    rank = int(os.read(read, 20))
    wait_until(lambda: state(rank) == "T")
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    assert select.select([read], [], [], PATIENCE)[0], "the rank is still there and holds the pipe"
    assert os.read(read, 5) == b""
    os.close(read)
