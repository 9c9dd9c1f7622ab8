"""The Trainer of a configuration, checked."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from src.errors import ConfigError, require
from src.runtime.build import build

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # schedules and noise are float32: weights must be too
VALIDATIONS = 5  # of a run of known length, unless trainer.val_check_interval says otherwise


def fill_length(cfg: DictConfig, steps_per_epoch: int) -> float:
    """Length of the run: the user's steps or epochs, else the data set's ``max_steps``; max_time is a further limit.

    Without a word about validation it takes place five times, evenly spaced (every 1,000 steps where the length is
    unknown). Returns the number of optimiser steps, infinite where only time limits the run.
    """
    trainer = cfg.trainer
    if trainer.max_steps is None and trainer.max_epochs is None:
        trainer.max_steps = cfg.dataset.max_steps
    for key in ("max_steps", "max_epochs"):
        length = trainer[key]
        known = length is None or (isinstance(length, int) and length >= -1 and length != 0)
        require(known, f"trainer.{key}", length, "must be an integer >= 1, or -1 for no limit")
    for key in ("accumulate_grad_batches", "log_every_n_steps"):
        count = trainer[key]
        require(isinstance(count, int) and count >= 1, f"trainer.{key}", count, "must be an integer >= 1")
    known_lengths = ((trainer.max_steps or -1), (trainer.max_epochs or -1) * steps_per_epoch)
    total = min((length for length in known_lengths if length > 0), default=float("inf"))
    if trainer.val_check_interval is None:
        steps = 1000 if total == float("inf") else max(1, total // VALIDATIONS)
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
    every = trainer.val_check_interval
    sensible = (isinstance(every, int) and every >= 1) or (isinstance(every, float) and 0 < every <= 1)
    require(sensible, "trainer.val_check_interval", every, "must be batches (>= 1) or a share of an epoch (0 ... 1]")
    if isinstance(every, int):  # counts batches over the whole run, not within an epoch
        trainer.check_val_every_n_epoch = None
    return total


def build_trainer(cfg: DictConfig, **objects: Any) -> pl.Trainer:  # noqa: ANN401
    """The Trainer of ``cfg.trainer`` with callbacks, loggers and plugins; what this machine cannot do is refused."""
    check_machine(cfg.trainer)
    clip = cfg.trainer.gradient_clip_val
    sensible = clip is None or (isinstance(clip, int | float) and clip >= 0)
    require(sensible, "trainer.gradient_clip_val", clip, "must be >= 0 (0 or null: no clipping)")
    _silence()
    unlimited = {key: -1 for key in ("max_steps", "max_epochs") if cfg.trainer[key] is None}
    return build(cfg, "trainer", **unlimited, **objects)


def check_seed(seed: object) -> None:
    """Raise ConfigError unless torch and NumPy take the seed."""
    require(isinstance(seed, int) and 0 <= seed < 2**32, "seed", seed, "must be an integer from 0 to 4294967295")


def check_machine(node: DictConfig) -> None:
    """Raise ConfigError when the precision is unknown or the accelerator is not to be had on this machine."""
    require(
        node.precision in PRECISIONS, "trainer.precision", node.precision, f"must be one of {', '.join(PRECISIONS)}"
    )
    if node.accelerator in ("gpu", "cuda") and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        asked = f"trainer.accelerator={node.accelerator}"
        raise ConfigError(f"{asked}: this machine has no GPU; use trainer=cpu, or trainer=default for what there is")


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
    ):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
