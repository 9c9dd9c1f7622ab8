"""A rehearsal of a run: a few steps of everything, and what they say about the whole."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time

import pytorch_lightning as pl
import torch

from src.errors import CheckpointError, ConfigError, require
from src.rundir.checkpoint import load_model

log = logging.getLogger(__name__)


class Preflight(pl.Callback):
    """Stops the training after ``steps`` optimiser steps; all else takes its course: validation, metrics, test.

    At the end the checkpoint is read back and compared with the weights in use, all that is monitored must have been
    logged, and parameters, memory, speed and the time that the whole run would take are told. monitor: the name that
    the run is judged by. Raises ConfigError, CheckpointError where this fails.
    """

    def __init__(self, monitor: str, steps: int = 5) -> None:
        require(steps >= 2, "steps", steps, "must be an integer >= 2: the first step is not timed")
        self.monitor, self.steps = monitor, steps
        self._ends: list[float] = []  # of steps, in seconds without those of validations
        self._validating = 0.0
        self._logged: set[str] = set()
        self._read_back = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long the run would be."""
        self._seen, self._left = (
            trainer.global_step,
            trainer.estimated_stepping_batches - trainer.global_step,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Take the time of an optimiser step, and stop after the last."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._ends.append(time.monotonic() - self._validating)
        trainer.should_stop = len(self._ends) >= self.steps

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._validating -= time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on, and note what was logged."""
        self._validating += time.monotonic()
        self._logged |= trainer.callback_metrics.keys()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the checkpoint back, while the weights that it should hold are in use."""
        if trainer.checkpoint_callback is None or not trainer.is_global_zero:
            return
        used, read = pl_module.model.state_dict(), load_model(trainer.default_root_dir).state_dict()
        wrong = sorted(
            name
            for name in used.keys() | read.keys()
            if not torch.equal(used[name].cpu(), read[name])
        )
        if wrong:
            raise CheckpointError(
                f"{trainer.default_root_dir}: the checkpoint holds other weights ({wrong[0]}, ...)"
            )
        self._read_back = True

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what was found."""
        self._logged |= trainer.callback_metrics.keys()
        monitored = {
            self.monitor,
            *(getattr(callback, "monitor", None) for callback in trainer.callbacks),
        } - {None}
        missing = sorted(monitored - self._logged)
        if missing:
            raise ConfigError(
                f"optimized_metric={missing[0]}: was not logged; {', '.join(sorted(self._logged))} were"
            )
        if trainer.is_global_zero:
            log.info("rehearsal of %d steps passed", len(self._ends))
            log.info(
                "  parameters  %s", f"{sum(p.numel() for p in pl_module.model.parameters()):,}"
            )
            log.info("  memory      %s", _memory(pl_module.device))
            for line in self._speed(trainer.datamodule.global_batch_size):
                log.info("  %s", line)
            log.info(
                "  checkpoint  %s",
                "read back, the same weights" if self._read_back else "none is written",
            )
            log.info("  monitored   %s", ", ".join(sorted(monitored)))

    def _speed(self, batch_size: int) -> list[str]:
        if len(self._ends) < 2:
            return ["speed       unknown: it takes two steps"]
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        length = (
            f"{self._left} steps, {_clock(self._left * seconds)}"
            if math.isfinite(self._left)
            else "no last step"
        )
        return [
            f"speed       {batch_size / seconds:,.0f} images/s, {1000 * seconds:.3g} ms a step",
            f"real run    {length} of training; validations, samples and the test come on top",
        ]


def _memory(device: torch.device) -> str:
    """Peaks of this process and of the GPU, if there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    text = f"{peak / 2**30:.2f} GiB at most"
    if device.type != "cuda":
        return text
    used, there = (
        torch.cuda.max_memory_reserved(device),
        torch.cuda.get_device_properties(device).total_memory,
    )
    return f"{text}, {used / 2**30:.2f} of {there / 2**30:.0f} GiB of the GPU"


def _clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        if minutes >= 60
        else f"{minutes}:{seconds:02d}"
    )
