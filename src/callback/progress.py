"""Progress of the whole run: a live bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from src.errors import require
from src.report.progress import training_bar

log = logging.getLogger(__name__)


def progress(every_seconds: float = 10.0) -> ProgressBar:
    """The display for standard output as it is: a bar on a terminal, else a line every ``every_seconds``."""
    require(every_seconds > 0, "every_seconds", every_seconds, "must be > 0")
    return LiveProgress(0.2) if sys.stdout.isatty() else PlainProgress(every_seconds)


class PlainProgress(ProgressBar):
    """One line every few seconds: step, losses, speed, time left; and one after each validation."""

    def __init__(self, every_seconds: float) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._told: dict[str, float] = {}

    def disable(self) -> None:
        """Lightning calls this on ranks other than 0, which are silent as it is."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Show the state when it is time to."""
        now = time.monotonic()
        if trainer.is_global_zero and now - self._last >= self.every_seconds:
            self._last = now
            speed = (trainer.global_step - self._first_step) / (now - self._begin)
            self._show(trainer, speed, _format(trainer, "train/loss"))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the results of a validation."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            results = {
                k: v.item()
                for k, v in trainer.callback_metrics.items()
                if k.startswith(("val/loss", "val/fid_")) and not k.startswith("val/fid_corrected_")
            }
            new = [f"{k} {v:.4g}" for k, v in results.items() if self._told.get(k) != v]
            self._told = results  # a distance that was not measured this time keeps its old value
            log.info("validation at step %d  %s", trainer.global_step, "  ".join(new))

    def _show(self, trainer: pl.Trainer, speed: float, losses: str) -> None:
        total = trainer.estimated_stepping_batches
        left = (total - trainer.global_step) / speed if speed > 0 else float("inf")
        end = f"  ETA {int(left // 60)}:{int(left % 60):02d}" if left < 1e7 else ""
        steps = f"{trainer.global_step}/{total:.0f}" if total < 1e12 else f"{trainer.global_step}"
        log.info("step %s  %s  %.1f steps/s%s", steps, losses, speed, end)


class LiveProgress(PlainProgress):
    """A bar over all optimiser steps with losses, speed and time left; other output scrolls above it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        super().on_train_start(trainer, pl_module)
        self._bar = training_bar(visible=trainer.is_global_zero)
        total = trainer.estimated_stepping_batches
        known = total if total < 1e12 else None
        self._task = self._bar.add_task(
            "training  ", total=known, completed=trainer.global_step, more=""
        )
        self._bar.start()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that a validation is under way."""
        if trainer.state.fn == "fit":
            self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the results above the bar."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._bar.update(self._task, description="training  ")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        if hasattr(self, "_bar"):
            self._bar.stop()

    def _show(self, trainer: pl.Trainer, speed: float, losses: str) -> None:
        self._bar.update(
            self._task, completed=trainer.global_step, more=f"{speed:.1f} steps/s  {losses}"
        )


def _format(trainer: pl.Trainer, prefix: str) -> str:
    return "  ".join(
        f"{k} {v.item():.4g}" for k, v in trainer.callback_metrics.items() if k.startswith(prefix)
    )
