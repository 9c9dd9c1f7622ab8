"""A rehearsal of a run: a few steps of everything, and what they predict for the whole."""

from __future__ import annotations

import logging
import math

import pytorch_lightning as pl
import torch

from src.callback.throughput import Spent, peak_memory, throughput_of
from src.errors import CheckpointError, ConfigError, require
from src.rundir.checkpoint import load_model

log = logging.getLogger(__name__)


class Preflight(pl.Callback):
    """Stops the training after a few optimiser steps; validation, metrics and test run as usual.

    At the end the checkpoint is read back and compared with the weights in use, all that is
    monitored must have been logged, and parameters, memory, speed and the time that the whole run
    would take are printed. Raises ConfigError, CheckpointError where this fails.

    Arguments:
        monitor: name of the value that the run optimises.
        steps: of the rehearsal.
    """

    def __init__(self, monitor: str, steps: int = 5) -> None:
        require(steps >= 2, "steps", steps, "must be an integer >= 2: the first step is not timed")
        self.monitor = monitor
        self.steps = steps
        self._done = 0  # steps
        self._spent: list[Spent] = []  # up to the first of them, and to the last
        self._logged: set[str] = set()
        self._read_back = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record how long the run would be."""
        self._seen = trainer.global_step
        self._left = trainer.estimated_stepping_batches - trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Stop after the last optimiser step; the time of the first is not counted."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._done += 1
        trainer.should_stop = self._done >= self.steps
        throughput = throughput_of(trainer)
        if throughput is not None and self._done in (1, self.steps):
            self._spent.append(throughput.spent())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what was logged."""
        self._logged |= trainer.callback_metrics.keys()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the checkpoint back, while the weights that it should hold are in use."""
        if trainer.checkpoint_callback is None or not trainer.is_global_zero:
            return
        run_dir = trainer.default_root_dir
        used = pl_module.model.state_dict()
        read = load_model(run_dir).state_dict()
        names = sorted(used.keys() | read.keys())
        wrong = [name for name in names if not torch.equal(used[name].cpu(), read[name])]
        if wrong:
            why = f"the checkpoint holds other weights ({wrong[0]}, ...)"
            raise CheckpointError(f"{run_dir}: {why}")
        self._read_back = True

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that all monitored values were logged, and print the report."""
        self._logged |= trainer.callback_metrics.keys()
        monitors = {getattr(callback, "monitor", None) for callback in trainer.callbacks}
        monitored = (monitors | {self.monitor}) - {None}
        missing = sorted(monitored - self._logged)
        if missing:
            logged = ", ".join(sorted(self._logged))
            raise ConfigError(f"optimized_metric={missing[0]}: was not logged; {logged} were")
        if not trainer.is_global_zero:
            return
        log.info("rehearsal of %d steps passed", self._done)
        parameters = sum(p.numel() for p in pl_module.model.parameters())
        log.info("  parameters  %s", f"{parameters:,}")
        log.info("  memory      %s", _memory(pl_module.device))
        for line in self._speed(trainer.datamodule.global_batch_size):
            log.info("  %s", line)
        found = "read back, the same weights" if self._read_back else "none is written"
        log.info("  checkpoint  %s", found)
        log.info("  monitored   %s", ", ".join(sorted(monitored)))

    def _speed(self, batch_size: int) -> list[str]:
        if len(self._spent) < 2:
            why = f"it takes callback.throughput and {self.steps} steps"
            return [f"speed       unknown: {why}"]
        first, last = self._spent
        seconds = last.since(first).training / (self.steps - 1)
        length = "no last step"
        if math.isfinite(self._left):
            length = f"{self._left} steps, {_clock(self._left * seconds)}"
        return [
            f"speed       {batch_size / seconds:,.0f} images/s, {1000 * seconds:.3g} ms a step",
            f"real run    {length} of training; validations, samples and the test come on top",
        ]


def _memory(device: torch.device) -> str:
    """Peaks of this process and of the GPU, if there is one."""
    text = f"{peak_memory(torch.device('cpu')):.2f} GiB at most"
    if device.type != "cuda":
        return text
    there = torch.cuda.get_device_properties(device).total_memory
    return f"{text}, {peak_memory(device):.2f} of {there / 2**30:.0f} GiB of the GPU"


def _clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
