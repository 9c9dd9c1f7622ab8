"""Sweeps as real processes: several drivers, drivers that are killed, pruning, W&B's agent."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT
from hold import holding
from omegaconf import OmegaConf
from optuna.trial import TrialState
from studies import run_study
from support import PATIENCE, wait_until

from src.sweep.storage import open_storage

QUICK = (
    *("network=mlp_autoencoder", "logger=csv", "callback.generation=null", "callback.grid=null"),
    *("dataset.global_batch_size=64", "callback.progress.every_seconds=1000", "features=pixels"),
)


def test_of_several_drivers_no_two_run_a_trial_and_one_may_be_killed(tmp_path):
    """Real processes, with the stand-in for the jobs: most of their time goes into the storage."""
    fork = multiprocessing.get_context("fork")
    drivers = [
        fork.Process(
            target=run_study,
            args=(tmp_path, "sweep.trials=24", f"hydra.launcher.jobs={k}"),
            daemon=True,
        )
        for k in (1, 2, 3)
    ]
    for driver in drivers:
        driver.start()
    wait_until(lambda: len(list(tmp_path.glob("*-vae-digits"))) > 4)
    os.kill(drivers[1].pid, signal.SIGKILL)
    for driver in drivers:
        driver.join(PATIENCE)
    assert [driver.exitcode for driver in drivers] == [0, -signal.SIGKILL, 0]
    rest, study, _ = run_study(tmp_path, "sweep.trials=24")
    assert len(rest.jobs) <= 2
    assert [trial.state for trial in study.trials] == 24 * [TrialState.COMPLETE]
    started = [len((path / "starts").read_text()) for path in tmp_path.glob("*-vae-digits")]
    assert sum(started) <= 24 + 2, "but those of the killed one, if any"


def test_the_start_of_the_program_reads_neither_optuna_nor_torch():
    heavy = "{'optuna', 'sqlalchemy', 'torch', 'matplotlib'}"
    code = (
        "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); "
        f"print({heavy} & set(sys.modules))"
    )
    code += "; print('hydra_plugins.genbench_sweeper' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["set()", "True"]


@pytest.fixture
def start():
    """Starts drivers in a sweep directory; they do not outlive the test."""
    started = []

    def driver(folder, *words):
        command = [
            sys.executable,
            "-m",
            "src.train",
            "--multirun",
            *QUICK,
            f"hydra.sweep.dir={folder}",
            *words,
        ]
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield driver
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_two_drivers(start, tmp_path):
    words = [
        "sweep=vae_tpe",
        "sweep.trials=3",
        "trainer.max_steps=10",
        "trainer.val_check_interval=5",
        holding(tmp_path, "sweep.trial"),
        "trusted_packages=[hold]",
    ]
    (tmp_path / "hold-1").write_text("7")
    first = start(tmp_path, *words)
    wait_until(lambda: (tmp_path / "0-vae-digits" / "metrics.json").exists())
    wait_until(lambda: (tmp_path / "1-vae-digits" / "checkpoints").exists())
    first.send_signal(signal.SIGKILL)
    first.wait()
    (tmp_path / "hold-1").unlink()
    before = optuna.load_study(study_name="vae_tpe", storage=open_storage(None, tmp_path)).trials
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    log = (tmp_path / "jobs" / "0.log").read_bytes()
    drivers = [start(tmp_path, *words) for _ in range(2)]
    said = [driver.communicate(timeout=PATIENCE)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    after = optuna.load_study(study_name="vae_tpe", storage=open_storage(None, tmp_path)).trials
    assert [trial.state.name for trial in after] == 3 * ["COMPLETE"]
    assert after[1].params == before[1].params
    assert sorted(path.name for path in tmp_path.glob("*-vae-digits")) == [
        f"{n}-vae-digits" for n in range(3)
    ]
    for trial in after:
        metrics = json.loads((tmp_path / f"{trial.number}-vae-digits" / "metrics.json").read_text())
        config = OmegaConf.load(tmp_path / f"{trial.number}-vae-digits" / "config.yaml")
        assert trial.values == [metrics["val/loss"]]
        assert config.optimizer.lr == trial.params["optimizer.lr"]
    assert (tmp_path / "jobs" / "0.log").read_bytes() == log, "done jobs are not done again"
    assert any("trial 1: its driver is gone, queued again" in text for text in said)
    assert (tmp_path / "study.png").exists()


@pytest.mark.slow
def test_a_job_that_is_worse_than_others_is_pruned(start, tmp_path):
    """Jobs of two ranks, which leave together."""
    space = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    space += ["search=grid", "model.latent_dim=4", "beta.value=1", "optimizer.lr=choice(1e-6,0.01)"]
    length = [
        "trainer.max_steps=30",
        "trainer.val_check_interval=8",
        "sweep.pruner.n_startup_trials=1",
    ]
    driver = start(tmp_path, "sweep=vae_pruned", *space, *length)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    trials = optuna.load_study(study_name="vae_pruned", storage=open_storage(None, tmp_path)).trials
    assert [(trial.params["optimizer.lr"], trial.state.name) for trial in trials] == [
        ("0.01", "COMPLETE"),
        ("1e-06", "PRUNED"),
    ]
    assert list(trials[0].intermediate_values) == [8, 16, 24]
    pruned = json.loads((tmp_path / "1-vae-digits" / "pruned.json").read_text())
    assert pruned == {"step": 8, "val/loss": trials[1].intermediate_values[8]}
    metrics = json.loads((tmp_path / "1-vae-digits" / "metrics.json").read_text())
    assert metrics["step"] == 8
    assert not any(name.startswith("test/") for name in metrics)
    assert "1 complete, 1 pruned" in said
    assert ",pruned," in (tmp_path / "jobs.csv").read_text()


def test_wandb_starts_runs_from_the_example(monkeypatch, tmp_path, capfd):
    """By W&B's own agent, without its server: words of real runs and their configuration."""
    from wandb.sdk.launch.sweeps.utils import load_sweep_config
    from wandb.wandb_agent import Agent

    example = load_sweep_config(str(ROOT / "docs" / "wandb_sweep.yaml"))
    agent = Agent.__new__(Agent)
    agent._sweep_command = [*example["command"], "--cfg", "job"]
    agent._function, agent._in_jupyter, agent._forward_signals, agent._run_processes = (
        None,
        False,
        False,
        {},
    )
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them: they are gone after the test
    monkeypatch.chdir(ROOT)
    values = {"optimizer.lr": 0.00123, "model.latent_dim": 8, "likelihood": "logistic"}
    assert values.keys() == example["parameters"].keys()
    command = {"run_id": "r1", "program": example["program"]}
    agent._command_run(command | {"args": {key: {"value": value} for key, value in values.items()}})
    assert agent._run_processes["r1"].wait() == 0
    config = yaml.safe_load(capfd.readouterr().out)
    assert config["optimizer"]["lr"] == 0.00123
    assert config["model"]["latent_dim"] == 8
    assert config["likelihood"]["_target_"].endswith("Logistic")
    assert example["metric"]["name"] == config["optimized_metric"]
