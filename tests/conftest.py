"""What the tests share: the command line in this process, configurations, a cache of features."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig
from runs import words
from zygote import Zygote

import src.config.cli  # noqa: F401 (its resolvers, also where one file of tests runs alone)

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

os.environ["WANDB_MODE"] = "offline"  # also for the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)  # the suite runs in two processes on two cores
settings.register_profile(
    "any machine", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def options(group: str) -> list[str]:
    """All options of a group: a new YAML is tested by existing."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory) -> Path:
    """Cache of trained feature networks: one for all processes, and the default of all commands."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["XDG_CACHE_HOME"] = str(base)
    return base / "genbench"


@pytest.fixture
def small(cache_dir) -> list[str]:
    """Overrides that make a run a matter of seconds."""
    return [
        "trainer=debug",
        "callback.preflight=null",
        *("trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.limit_train_batches=1"),
        "logger=csv",
        "dataset.global_batch_size=16",
        f"cache_dir={cache_dir}",
        "features.num_steps=30",
        "callback.progress.every_seconds=1000",
    ]


@pytest.fixture
def composed(cache_dir, tmp_path) -> Callable[..., DictConfig]:
    """Compose conf/train.yaml as the command line would."""

    def make(*overrides: str, name: str = "train") -> DictConfig:
        GlobalHydra.instance().clear()
        own = [f"run_dir={tmp_path}/run", f"cache_dir={cache_dir}"] if name == "train" else []
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, [*own, *overrides])

    return make


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """Run an entry point in this process, from an empty directory; returns its code and output."""

    def call(entry: str, *words: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"src/{entry}.py", *words])
        GlobalHydra.instance().clear()
        root = logging.getLogger()
        handlers = list(root.handlers)
        code = 0
        try:
            importlib.import_module(f"src.{entry}").main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            GlobalHydra.instance().clear()
            root.handlers[:] = handlers
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Starts commands by forking a process that has imported everything."""
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def unbroken(zygote, tmp_path_factory):
    """(model, variant) -> the run directory of a run that nothing happened to, made once."""
    known = {}

    def run(model, variant):
        if (model, variant) not in known:
            known[model, variant] = tmp_path_factory.mktemp("unbroken") / f"{model}-{variant}"
            done = zygote.run(
                "train", *words(model, variant), f"hydra.run.dir={known[model, variant]}"
            )
            assert done.code == 0, done.err
        return known[model, variant]

    return run
