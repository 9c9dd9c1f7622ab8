"""Checkpoints: exact states at step boundaries, the newest few and the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint as LastInOrder

from src.errors import Interrupted, require
from src.rundir.store import CheckpointStore, alias
from src.training.interruption import INTERRUPTION


class Checkpoint(LastInOrder):
    """Saves the whole state before and after every validation, every so often between them, and before a stop.

    dirpath: gets ``step-<step>.ckpt`` (the newest ``keep``), ``best-<step>.ckpt`` by ``monitor``, and ``latest.json``,
    which names the one to go on from. every_steps, every_minutes: between validations; null for none. A state is
    taken after an optimiser step and becomes the newest once the numbers of this step are on the disk. One from before
    a validation says so: whoever goes on from it validates first, in full. Lightning runs this callback after all
    others, so it sees their final states.
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
        require(mode in ("min", "max"), "mode", mode, "must be min or max")
        require(isinstance(keep, int) and keep >= 1, "keep", keep, "must be an integer >= 1")
        whole = every_steps is None or (isinstance(every_steps, int) and every_steps >= 1)
        require(whole, "every_steps", every_steps, "must be an integer >= 1, or null")
        positive = every_minutes is None or (
            isinstance(every_minutes, int | float) and 0 < every_minutes < math.inf
        )
        require(positive, "every_minutes", every_minutes, "must be > 0, or null")
        self.store = CheckpointStore(Path(dirpath), keep)
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.every_steps, self.every_minutes = every_steps, every_minutes
        self.best: float | None = None
        self.validates = False  # whether the state is from before a validation
        self.seconds = 0.0  # of training before this process
        self.metrics: dict[str, float] = {}  # last values before this process
        self._measured: Callable[[], dict[str, float]] = dict
        self._step = self._saved = -1
        self._limit: int | None = None  # trainer.max_steps while it is lifted
        self._unpublished: tuple[Path, Path | None] | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """At its last step Lightning would return at once, and a validation that was cut off would never be run."""
        checkpoint.get("callbacks", {}).pop("Timer", None)  # trainer.max_time is of each process
        loop, step = trainer.fit_loop.epoch_loop, checkpoint["global_step"]
        if trainer.state.fn == "fit" and 0 < loop.max_steps <= step:
            self._limit, loop.max_steps = loop.max_steps, step + 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate where the run that is resumed was cut off before or within a validation."""
        INTERRUPTION.listen()
        self._step = trainer.global_step
        self._measured = lambda: {
            name: value.item() for name, value in trainer.callback_metrics.items()
        }
        self._time = self._begin = time.monotonic()
        self._saved = self._step if self._step else -1
        if trainer.is_global_zero:
            self.store.clean()
        if not list(self.store.directory.glob("best-*.ckpt")):
            self.best = None  # it stayed with the run that this one was begun from
        loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.total
        if epochs.processed == epochs.ready:
            trainer.fit_loop.reset_restart_stage()  # or else Lightning would count the next epoch as this one
        if self.validates:
            loop.val_loop.restarting = False
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True
        if self._limit is not None:
            loop.max_steps = self._limit
        INTERRUPTION.busy, INTERRUPTION.may_leave = True, trainer.world_size == 1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """The step before is logged by now."""
        INTERRUPTION.may_leave = False
        self._publish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Save after an optimiser step where it is time to; micro-batches of an accumulation do not count."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        self.validates = _validation_follows(trainer)
        over = step >= trainer.estimated_stepping_batches
        asked, due = _any_rank(trainer, INTERRUPTION.requested is not None, self._is_time(step))
        if asked:
            INTERRUPTION.request()
        if asked or due or over or self.validates:
            self._save(trainer)
        INTERRUPTION.may_leave = (
            asked or trainer.world_size == 1
        )  # in the wait for the next batch, after logging

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on nothing is lost by stopping: the state is on the disk and says that a validation follows."""
        INTERRUPTION.listen()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._publish(trainer)
            if _any_rank(trainer, INTERRUPTION.requested is not None)[0]:
                INTERRUPTION.request()
                INTERRUPTION.leave_if_requested()
            INTERRUPTION.busy = trainer.world_size > 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save again, with the metrics that callbacks have counted, and the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        INTERRUPTION.busy, self.validates = True, False
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        better = math.isfinite(value) and (
            self.best is None or self.sign * value < self.sign * self.best
        )
        if better:
            self.best = value
        self._save(trainer, best=better)
        self._publish(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has put its own signal handler in front again."""
        INTERRUPTION.listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last state where nothing else has (``trainer.max_time``)."""
        if trainer.global_step not in (0, self._saved):
            self._save(trainer)
        self._publish(trainer)
        INTERRUPTION.busy = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """A run that was stopped while it waited for data stands at a boundary, which is worth keeping."""
        waited = isinstance(exception, Interrupted) and not INTERRUPTION.busy and trainer.training
        INTERRUPTION.busy = False
        if waited and trainer.global_step == self._step:
            if self._step not in (0, self._saved) and trainer.world_size == 1:
                self._save(trainer)
            self._publish(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Best value, whether a validation is still to come at this step, time taken, last value of each metric."""
        seconds = self.seconds + time.monotonic() - self._begin
        state = {"best": self.best, "validates": self.validates, "seconds": seconds}
        return state | {"metrics": self.metrics | self._measured()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the checkpoint says."""
        for name in ("best", "validates", "seconds", "metrics"):
            setattr(self, name, state_dict[name])

    def _is_time(self, step: int) -> bool:
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or (
            self.every_minutes is not None
            and time.monotonic() - self._time > 60 * self.every_minutes
        )

    def _save(self, trainer: pl.Trainer, best: bool = False) -> None:
        """Write the state; the best one has two names."""
        if trainer.fast_dev_run:
            return
        path, second = self.store.path(self._step), self.store.path(self._step, "best")
        trainer.save_checkpoint(second if best else path)
        if best and trainer.is_global_zero:
            alias(second, path)
        self._saved, self._time, self._unpublished = (
            self._step,
            time.monotonic(),
            (path, second if best else None),
        )

    def _publish(self, trainer: pl.Trainer) -> None:
        """Make the state the one to go on from, now that the numbers up to its step are written."""
        if self._unpublished is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            self.store.publish(*self._unpublished)
        self._unpublished = None


def _validation_follows(trainer: pl.Trainer) -> bool:
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(
        loop._data_fetcher
    )  # the question that Lightning asks itself next


def _any_rank(trainer: pl.Trainer, *answers: bool) -> tuple[bool, ...]:
    """Each answer, true where it is true on any rank."""
    if trainer.world_size == 1:
        return answers
    gathered = torch.tensor(answers, dtype=torch.float32, device=trainer.strategy.root_device)
    return tuple(trainer.strategy.reduce(gathered, reduce_op="max").bool().tolist())
