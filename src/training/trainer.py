"""The Trainer of a configuration, checked."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
import signal
import sys
import warnings
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.callbacks import Checkpoint

from src.errors import ConfigError, require
from src.config.build import build
from src.training.data import limited

PRECISIONS = (
    "32-true",
    "bf16-mixed",
    "16-mixed",
)  # schedules and noise are float32: weights must be too
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "DDPStrategy")
LENGTHS = ("max_steps", "max_epochs")
COUNTS = ("accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch")
LIMITS = ("val_check_interval", "limit_train_batches", "limit_val_batches", "limit_test_batches")
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent is gone
VALIDATIONS = 5  # of a run of known length, unless trainer.val_check_interval says otherwise


def fill_length(cfg: DictConfig, steps_per_epoch: int) -> float:
    """Length of the run: the user's steps or epochs, else the data set's ``max_steps``; max_time is a further limit.

    Without a word about validation it takes place five times, evenly spaced (every 1,000 steps where the length is
    unknown). Epochs are counted in steps from here on: Lightning resumes the position in the data for steps only.
    Returns the number of optimiser steps, infinite where only time limits the run.
    """
    trainer = cfg.trainer
    if trainer.max_steps is None and trainer.max_epochs is None:
        _require_length("dataset.max_steps", cfg.dataset.max_steps)
        trainer.max_steps = cfg.dataset.max_steps
    batches = limited(
        steps_per_epoch * trainer.accumulate_grad_batches, trainer.limit_train_batches
    )
    steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    known_lengths = ((trainer.max_steps or -1), (trainer.max_epochs or -1) * steps_per_epoch)
    total = min((length for length in known_lengths if length > 0), default=float("inf"))
    if total < float("inf"):
        trainer.max_steps, trainer.max_epochs = total, -1
    if trainer.val_check_interval is None and trainer.check_val_every_n_epoch is None:
        steps = 1000 if total == float("inf") else max(1, total // VALIDATIONS)
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
    elif not isinstance(
        trainer.val_check_interval, int
    ):  # which counts batches over the whole run, not in an epoch
        trainer.val_check_interval = trainer.val_check_interval or 1.0
        trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch or 1
    return total


def build_trainer(cfg: DictConfig, **objects: Any) -> pl.Trainer:  # noqa: ANN401
    """The Trainer of ``cfg.trainer`` with callbacks, loggers and plugins; what this machine cannot do is refused."""
    check_trainer(cfg.trainer)
    prepare_process()
    unlimited = {key: -1 for key in LENGTHS if cfg.trainer[key] is None}
    saves = any(isinstance(callback, Checkpoint) for callback in objects.get("callbacks", ()))
    return build(
        cfg, "trainer", enable_checkpointing=saves, **unlimited, **objects
    )  # no checkpoints but ours


def check_seed(seed: object) -> None:
    """Raise ConfigError unless torch and NumPy take the seed."""
    require(
        isinstance(seed, int) and 0 <= seed < 2**32,
        "seed",
        seed,
        "must be an integer from 0 to 4294967295",
    )


def check_trainer(node: DictConfig) -> None:
    """Raise ConfigError for what Lightning would accept in silence, or refuse without the name of the setting."""
    check_machine(node)
    for key in LENGTHS:
        if node[key] is not None:
            _require_length(f"trainer.{key}", node[key])
    for key in COUNTS:
        count = node[key]
        whole = isinstance(count, int) and count >= 1
        require(whole or count is None, f"trainer.{key}", count, "must be an integer >= 1")
    epochs, interval = node.check_val_every_n_epoch, node.val_check_interval
    allowed = f"must be null where trainer.val_check_interval={interval} counts batches over the whole run"
    require(
        epochs is None or not isinstance(interval, int),
        "trainer.check_val_every_n_epoch",
        epochs,
        allowed,
    )
    for key in LIMITS:
        limit = node[key]
        sensible = (
            limit is None
            or (isinstance(limit, int) and limit >= 1)
            or (isinstance(limit, float) and 0 < limit <= 1)
        )
        require(
            sensible,
            f"trainer.{key}",
            limit,
            "must be batches (>= 1) or a share of an epoch (0 ... 1]",
        )
    clip, time = node.gradient_clip_val, node.max_time
    sensible = clip is None or (isinstance(clip, int | float) and 0 <= clip < float("inf"))
    require(sensible, "trainer.gradient_clip_val", clip, "must be >= 0 (0 or null: no clipping)")
    sensible = time is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(time))
    require(sensible, "trainer.max_time", time, "must be DD:HH:MM:SS, or null")
    exact = node.deterministic
    require(
        exact in (None, True, False, "warn"),
        "trainer.deterministic",
        exact,
        "must be true, false or warn",
    )
    checks = node.num_sanity_val_steps
    require(
        isinstance(checks, int) and checks >= -1,
        "trainer.num_sanity_val_steps",
        checks,
        "must be an integer >= -1",
    )


def check_machine(node: DictConfig) -> None:
    """Raise ConfigError when precision, accelerator or devices are unknown, or not those of this machine and job."""
    for key, allowed in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
        require(
            node[key] in allowed,
            f"trainer.{key}",
            node[key],
            f"must be one of {', '.join(allowed)}",
        )
    gpus = CUDAAccelerator.auto_device_count() or int(MPSAccelerator.is_available())
    if node.accelerator not in ("auto", "cpu") and not gpus:
        asked = f"trainer.accelerator={node.accelerator}"
        raise ConfigError(
            f"{asked}: this machine has no GPU; use trainer=cpu, or trainer=default for what there is"
        )
    if node.accelerator == "cpu":
        gpus = 0
    advice = "needs a GPU, and this run is on the CPU; use trainer.precision=bf16-mixed or 32-true"
    require(bool(gpus) or node.precision != "16-mixed", "trainer.precision", node.precision, advice)
    nodes, devices = node.num_nodes, node.devices
    require(
        isinstance(nodes, int) and nodes >= 1, "trainer.num_nodes", nodes, "must be an integer >= 1"
    )
    most = gpus or max(
        2, os.cpu_count() or 1
    )  # two processes on one core still show whether it works
    if (
        isinstance(devices, int) or not gpus
    ):  # of GPUs Lightning also takes lists, as in [0,2] or "0,2"
        sensible = devices == "auto" or (isinstance(devices, int) and 1 <= devices <= most)
        there = f"{gpus} GPUs" if gpus else f"{os.cpu_count()} CPU cores"
        require(
            sensible,
            "trainer.devices",
            devices,
            f"must be auto or from 1 to {most}: this machine has {there}",
        )
    if devices == "auto":
        devices = gpus or 1
    _check_ranks(
        devices if isinstance(devices, int) else len(CUDAAccelerator.parse_devices(devices)), nodes
    )
    strategy = (
        node.strategy
        if isinstance(node.strategy, str)
        else OmegaConf.select(node, "strategy._target_")
    )
    allowed = (
        f"must be one of {', '.join(STRATEGIES)}: every rank holds all weights, see docs/scaling.md"
    )
    require(str(strategy).rpartition(".")[2] in STRATEGIES, "trainer.strategy", strategy, allowed)
    patience = OmegaConf.select(node, "strategy.timeout.seconds", default=1)
    sensible = isinstance(patience, int | float) and 0 < patience <= 1e6
    require(
        sensible,
        "trainer.strategy.timeout.seconds",
        patience,
        "must be a number of seconds from > 0 to 1e6",
    )


def _check_ranks(devices: int, nodes: int) -> None:
    """Raise ConfigError unless this job has as many processes as the settings say: each would be a run of its own."""
    job, world, here = os.environ, devices * nodes, devices
    placed = "SLURM_NTASKS" in job and SLURMEnvironment.job_name() not in ("bash", "interactive")
    launcher = "torchrun" if TorchElasticEnvironment.detect() else "Slurm" if placed else None
    if launcher == "torchrun":
        world, here = int(job["WORLD_SIZE"]), int(job["LOCAL_WORLD_SIZE"])
    elif launcher == "Slurm":
        world = int(job["SLURM_NTASKS"])
        here = int(job.get("SLURM_NTASKS_PER_NODE", 1))
        allowed = "tasks of a Slurm job are not placed; give --ntasks-per-node instead"
        require(world == 1 or "SLURM_NTASKS_PER_NODE" in job, "--ntasks", world, allowed)
    if (world, here) != (devices * nodes, devices):
        raise ConfigError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes}: {launcher} has started {world} processes, "
            f"{here} on a node; give trainer=ddp trainer.devices={here} trainer.num_nodes={world // here}"
        )
    alone = launcher is None and nodes > 1 and "MASTER_ADDR" not in job
    advice = "this process was started alone; use torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
    require(not alone, "trainer.num_nodes", nodes, advice)
    within = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    advice = (
        "jobs of --multirun with several devices must be processes of their own; use launcher=local"
    )
    require(not within or world == 1, "trainer.devices", devices, advice)


def _require_length(name: str, length: object) -> None:
    whole = isinstance(length, int) and length >= -1 and length != 0
    require(whole, name, length, "must be an integer >= 1, or -1 for no limit")


def prepare_process() -> None:
    """Silence Lightning where the choice is ours; a rank that another process has started ends with it, or is left."""
    _silence()
    if os.environ.get("LOCAL_RANK", "0") != "0" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _silence() -> None:
    """Lightning's notices, which it switches on when imported, and its warnings about choices that are ours."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    for text in (
        "does not have many workers",
        "exists and is not empty",
        "logging interval",
        "LeafSpec",
        "Grad strides",
        "sync_dist=True",  # what is logged without is the same on all ranks
        "srun. command is available",
    ):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
