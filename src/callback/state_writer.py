"""Writing the state of a run: the newest few files, the best one, and which to go on from."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytorch_lightning as pl

from src.errors import require
from src.rundir.store import CheckpointStore, alias


class StateWriter:
    """Writes states into a store. A state counts from ``publish`` on, not from ``save`` on.

    Arguments:
        directory: of the checkpoints.
        mode: ``min`` or ``max``, of the value by which one is the best.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, mode: str, keep: int) -> None:
        require(mode in ("min", "max"), "mode", mode, "must be min or max")
        require(isinstance(keep, int) and keep >= 1, "keep", keep, "must be an integer >= 1")
        self.store = CheckpointStore(directory, keep)
        self.mode = mode
        self.best: float | None = None
        self.saved = -1  # step of the newest state
        self._time = 0.0  # at which it was written
        self._unpublished: tuple[Path, Path | None] | None = None

    @property
    def seconds(self) -> float:
        """Since the last save, or the begin."""
        return time.monotonic() - self._time

    def begin(self, trainer: pl.Trainer) -> None:
        """Begin where the trainer stands: the state that it was resumed from lies there already."""
        self._time = time.monotonic()
        if trainer.global_step:
            self.saved = trainer.global_step
        else:
            self.saved = -1
        if trainer.is_global_zero:
            self.store.clean()
        if not self.store.steps("best"):
            self.best = None  # it stayed with the run that this one was begun from

    def is_new_best(self, value: float) -> bool:
        """Whether a value is finite and better than ``best``."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        if self.mode == "min":
            return value < self.best
        return value > self.best

    def save(self, trainer: pl.Trainer, best: bool = False) -> None:
        """Write the state of all ranks; the best one also under a name that outlives ``keep``."""
        if trainer.fast_dev_run:
            return
        step = trainer.global_step
        path = self.store.path(step)
        second = self.store.path(step, "best") if best else None
        with trainer.profiler.profile("saving"):
            trainer.save_checkpoint(second or path)
            if second and trainer.is_global_zero:
                alias(second, path)
        self.saved = step
        self._time = time.monotonic()
        self._unpublished = (path, second)

    def publish(self, trainer: pl.Trainer) -> None:
        """Make the last saved state the newest, once the numbers up to its step are written."""
        if self._unpublished is not None and trainer.is_global_zero:
            with trainer.profiler.profile("saving"):
                for logger in trainer.loggers:
                    logger.save()
                self.store.publish(*self._unpublished)
        self._unpublished = None
