"""The Trainer of a configuration, checked."""

from __future__ import annotations

import logging
import warnings
from typing import Any, get_args

import pytorch_lightning as pl
from lightning_fabric.connector import _PRECISION_INPUT_STR
from omegaconf import DictConfig
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from src.errors import ConfigError, require
from src.runtime.build import build

VALIDATIONS = 5  # of a run of known length, unless trainer.val_check_interval says otherwise


def fill_length(cfg: DictConfig, steps_per_epoch: int) -> float:
    """Length of the run: what the user says of steps, epochs and time, else the data set's own ``max_steps``.

    Without a word about validation a run of known length is validated five times, evenly spaced. Returns the number of
    optimiser steps, infinite where only time limits the run.
    """
    trainer = cfg.trainer
    if all(trainer[key] is None for key in ("max_steps", "max_epochs", "max_time")):
        trainer.max_steps = cfg.dataset.max_steps
    for key in ("max_steps", "max_epochs"):
        length = trainer[key]
        known = length is None or (isinstance(length, int) and length >= -1 and length != 0)
        require(known, f"trainer.{key}", length, "must be an integer >= 1, or -1 for no limit")
    accumulate = trainer.accumulate_grad_batches
    counted = isinstance(accumulate, int) and accumulate >= 1
    require(counted, "trainer.accumulate_grad_batches", accumulate, "must be an integer >= 1")
    known_lengths = ((trainer.max_steps or -1), (trainer.max_epochs or -1) * steps_per_epoch)
    lengths = [length for length in known_lengths if length > 0]
    if lengths and trainer.val_check_interval is None:
        trainer.val_check_interval = max(1, min(lengths) // VALIDATIONS) * accumulate
    if isinstance(trainer.val_check_interval, int):  # counts batches over the whole run, not within an epoch
        trainer.check_val_every_n_epoch = None
    return min(lengths, default=float("inf"))


def build_trainer(cfg: DictConfig, **objects: Any) -> pl.Trainer:  # noqa: ANN401
    """The Trainer of ``cfg.trainer`` with callbacks, loggers and plugins; what this machine cannot do is refused."""
    check_machine(cfg.trainer)
    clip = cfg.trainer.get("gradient_clip_val")
    require(clip is None or clip >= 0, "trainer.gradient_clip_val", clip, "must be >= 0 (0 or null: no clipping)")
    _silence()
    unlimited = {key: -1 for key in ("max_steps", "max_epochs") if cfg.trainer[key] is None}
    return build(cfg, "trainer", **unlimited, **objects)


def check_machine(node: DictConfig) -> None:
    """Raise ConfigError when the precision is unknown or the accelerator is not to be had on this machine."""
    allowed = [name for name in get_args(_PRECISION_INPUT_STR) if not name.startswith("transformer-engine")]
    require(str(node.precision) in allowed, "trainer.precision", node.precision, f"must be one of {', '.join(allowed)}")
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
