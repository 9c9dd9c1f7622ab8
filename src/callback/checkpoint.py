"""Checkpoints: exact states at step boundaries, the newest few and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint as LastInOrder

from src.callback.lightning_repairs import LightningRepairs, validation_follows
from src.callback.save_policy import SavePolicy
from src.callback.state_writer import StateWriter
from src.errors import Interrupted, require
from src.foreign import NUMBER, check_texts, checked
from src.training.interruption import INTERRUPTION


class Checkpoint(LastInOrder):
    """Saves the whole state around every validation, at intervals between them, and before a stop.

    A state is taken after an optimiser step and becomes the newest once the numbers of this step
    are on the disk. One from before a validation is marked: a run that resumes from it first
    validates, in full. Lightning runs callbacks of this base class after all others, so it sees
    their final states.

    Arguments:
        dirpath: the run directory; ``checkpoints`` in it gets ``step-<step>.ckpt`` (the newest
            ``keep``), ``best-<step>.ckpt``, and ``latest.json``, which names the one to go on from.
        monitor: name of the value by which one is the best.
        mode: ``min`` or ``max``, of that value.
        keep: how many of the newest stay.
        every_steps: see ``SavePolicy``; between validations.
        every_minutes: likewise.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str,
        mode: str = "min",
        keep: int = 2,
        every_steps: int | None = None,
        every_minutes: float | None = 10.0,
    ) -> None:
        advice = (
            "must be logged at validations (val/...); "
            "with another optimized_metric set callback.checkpoint.monitor"
        )
        require(isinstance(monitor, str) and monitor.startswith("val/"), "monitor", monitor, advice)
        self.monitor = monitor
        self.writer = StateWriter(Path(dirpath, "checkpoints"), mode, keep)
        self.policy = SavePolicy(every_steps, every_minutes)
        self.repairs = LightningRepairs()
        self.validates = False  # whether the state is from before a validation
        self.seconds = 0.0  # of training before this process
        self.metrics: dict[str, float] = {}  # last values before this process
        self._measured: Callable[[], dict[str, float]] = dict  # those of this process
        self._step = -1  # the last one that was seen

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Prepare Lightning's loops for a resumed run."""
        self.repairs.forget_timer(checkpoint)
        self.repairs.lift_limit(trainer, checkpoint["global_step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate where the run that is resumed was cut off before or within a validation."""
        INTERRUPTION.listen()
        self._step = trainer.global_step
        self._last = trainer.estimated_stepping_batches
        self._begin = time.monotonic()
        self._measured = partial(_values, trainer)
        self.writer.begin(trainer)
        self.repairs.count_epochs(trainer)
        if self.validates:
            self.repairs.validate(trainer)
        self.repairs.restore_limit(trainer)
        INTERRUPTION.busy = True
        INTERRUPTION.may_leave = trainer.world_size == 1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Publish: the numbers of the step before are logged by now."""
        INTERRUPTION.may_leave = False
        self.writer.publish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Save after an optimiser step where the policy is met, not after a micro-batch."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        self.validates = validation_follows(trainer)
        due = self.policy.is_due(step, self.writer.seconds)
        requested, due = _any_rank(trainer, INTERRUPTION.requested is not None, due)
        if requested:
            INTERRUPTION.request()
        over = step >= self._last
        if self.policy.saves(due, requested, over, self.validates):
            self.writer.save(trainer)
        # in the wait for the next batch, after logging
        INTERRUPTION.may_leave = requested or trainer.world_size == 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop here on request: the state on the disk is marked as one before a validation."""
        INTERRUPTION.listen()
        if not _within_fit(trainer):
            return
        self.writer.publish(trainer)
        (requested,) = _any_rank(trainer, INTERRUPTION.requested is not None)
        if requested:
            INTERRUPTION.request()
            INTERRUPTION.leave_if_requested()
        INTERRUPTION.busy = trainer.world_size > 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save again, with the metrics that callbacks have counted, and the best."""
        if not _within_fit(trainer):
            return
        INTERRUPTION.busy = True
        self.validates = False
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        best = self.writer.is_new_best(value)
        if best:
            self.writer.best = value
        self.writer.save(trainer, best)
        self.writer.publish(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle signals again: Lightning has put its own handler in front."""
        INTERRUPTION.listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last state where nothing else has (``trainer.max_time``)."""
        if trainer.global_step not in (0, self.writer.saved):
            self.writer.save(trainer)
        self.writer.publish(trainer)
        INTERRUPTION.busy = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep the state of a run that was stopped while it waited for data: at a boundary."""
        waited = isinstance(exception, Interrupted) and not INTERRUPTION.busy and trainer.training
        INTERRUPTION.busy = False
        if not waited or trainer.global_step != self._step:
            return
        if self._step not in (0, self.writer.saved) and trainer.world_size == 1:
            self.writer.save(trainer)
        self.writer.publish(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Best value, whether a validation follows, time taken, last value of each metric."""
        return {
            "best": self.writer.best,
            "validates": self.validates,
            "seconds": self.seconds + time.monotonic() - self._begin,
            "metrics": self.metrics | self._measured(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` has written."""
        kinds = {"best": NUMBER, "validates": (bool,), "seconds": (int, float), "metrics": (dict,)}
        known = checked(state_dict, kinds)
        check_texts(list(known["metrics"]), "metrics")
        self.metrics = checked(known["metrics"], dict.fromkeys(known["metrics"], (int, float)))
        self.writer.best = known["best"]
        self.validates = known["validates"]
        self.seconds = known["seconds"]


def _values(trainer: pl.Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def _within_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation belongs to the training and is no check beforehand."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _any_rank(trainer: pl.Trainer, *facts: bool) -> tuple[bool, ...]:
    """Each fact, true where it is true on any rank."""
    if trainer.world_size == 1:
        return facts
    gathered = torch.tensor(facts, dtype=torch.float32, device=trainer.strategy.root_device)
    return tuple(trainer.strategy.reduce(gathered, reduce_op="max").bool().tolist())
