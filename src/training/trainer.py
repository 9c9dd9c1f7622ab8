"""The Trainer of a configuration, and how long it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, open_dict
from pytorch_lightning.callbacks import Checkpoint

from src.config.build import build
from src.config.checks import LENGTH
from src.errors import require
from src.parallel.compile import Compile
from src.parallel.process import prepare_process
from src.training.order import limited

VALIDATIONS = 5  # of a run of known length, unless trainer.val_check_interval says otherwise


def counts_epochs(trainer: DictConfig) -> bool:
    """Whether the length of the run is known only with the size of the data."""
    return (trainer.max_epochs or 0) > 0


def fill_length(cfg: DictConfig, steps_per_epoch: int = 0) -> float:
    """Number of optimiser steps: the user's steps or epochs, else the data set's ``max_steps``.

    Infinite where only ``trainer.max_time``, a further limit, ends the run. Where nothing is said
    of validation it takes place five times, evenly spaced (every 1,000 steps where the length is
    unknown). Epochs are counted in steps from here on: Lightning resumes the position in the data
    for steps only. steps_per_epoch: needed where ``counts_epochs``.
    """
    trainer = cfg.trainer
    if trainer.max_steps is None and trainer.max_epochs is None:
        length = cfg.dataset.max_steps
        is_length = length is not None and LENGTH.holds(length)
        require(is_length, "dataset.max_steps", length, LENGTH.allowed)
        trainer.max_steps = length
    accumulate = trainer.accumulate_grad_batches
    batches = limited(steps_per_epoch * accumulate, trainer.limit_train_batches)
    epoch = math.ceil(batches / accumulate)
    lengths = ((trainer.max_steps or -1), (trainer.max_epochs or -1) * epoch)
    total = min((length for length in lengths if length > 0), default=math.inf)
    if total < math.inf:
        trainer.max_steps, trainer.max_epochs = total, -1
    if trainer.val_check_interval is None and trainer.check_val_every_n_epoch is None:
        steps = 1000 if total == math.inf else max(1, total // VALIDATIONS)
        trainer.val_check_interval = steps * accumulate
    elif not isinstance(trainer.val_check_interval, int):
        # a share of an epoch; an integer counts batches over the whole run
        trainer.val_check_interval = trainer.val_check_interval or 1.0
        trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch or 1
    return total


def build_trainer(
    cfg: DictConfig,
    callbacks: Sequence[pl.Callback] = (),
    **objects: Any,  # noqa: ANN401
) -> pl.Trainer:
    """The Trainer of ``cfg.trainer``, which was checked, with callbacks, loggers and plugins."""
    prepare_process()
    cfg = cfg.copy()
    with open_dict(cfg):
        compiled = cfg.trainer.pop("compile", False)  # no setting of Lightning's
    callbacks = [*([Compile()] if compiled else []), *callbacks]
    unlimited = {key: -1 for key in ("max_steps", "max_epochs") if cfg.trainer[key] is None}
    # no checkpoints but ours
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    objects |= {"callbacks": callbacks, "enable_checkpointing": saves}
    return build(cfg, "trainer", **unlimited, **objects)
