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
    """A bar on a terminal, else a line every ``every_seconds``."""
    require(every_seconds > 0, "every_seconds", every_seconds, "must be > 0")
    return LiveProgress(0.2) if sys.stdout.isatty() else PlainProgress(every_seconds)


class PlainProgress(ProgressBar):
    """One line every few seconds: step, losses, speed, time left; and one after each validation."""

    def __init__(self, every_seconds: float) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._shown: dict[str, float] = {}  # results of the last validation

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
        if not trainer.is_global_zero or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        results = {}
        for name, value in trainer.callback_metrics.items():
            is_shown = name.startswith(("val/loss", "val/fid_"))
            if is_shown and not name.startswith("val/fid_corrected_"):
                results[name] = value.item()
        # a distance that was not measured this time keeps its old value
        new = [f"{k} {v:.4g}" for k, v in results.items() if self._shown.get(k) != v]
        self._shown = results
        log.info("validation at step %d  %s", trainer.global_step, "  ".join(new))

    def _show(self, trainer: pl.Trainer, speed: float, losses: str) -> None:
        total = trainer.estimated_stepping_batches
        left = (total - trainer.global_step) / speed if speed > 0 else float("inf")
        end = f"  ETA {int(left // 60)}:{int(left % 60):02d}" if left < 1e7 else ""
        steps = str(trainer.global_step)
        if total < 1e12:
            steps += f"/{total:.0f}"
        log.info("step %s  %s  %.1f steps/s%s", steps, losses, speed, end)


class LiveProgress(PlainProgress):
    """A bar over all optimiser steps with losses, speed and time left, below other output."""

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
        """Show that a validation is under way."""
        if trainer.state.fn == "fit":
            self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the results above the bar."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._bar.update(self._task, description="training  ")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        if hasattr(self, "_bar"):
            self._bar.stop()

    def _show(self, trainer: pl.Trainer, speed: float, losses: str) -> None:
        more = f"{speed:.1f} steps/s  {losses}"
        self._bar.update(self._task, completed=trainer.global_step, more=more)


def _format(trainer: pl.Trainer, prefix: str) -> str:
    values = trainer.callback_metrics.items()
    return "  ".join(f"{k} {v.item():.4g}" for k, v in values if k.startswith(prefix))
