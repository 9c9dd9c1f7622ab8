"""Progress: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from src.errors import require

log = logging.getLogger(__name__)


def progress(every_seconds: float = 10.0) -> ProgressBar:
    """The bar for standard output as it is: a live one on a terminal, else a line every ``every_seconds``."""
    require(every_seconds > 0, "every_seconds", every_seconds, "must be > 0")
    return LiveProgress() if sys.stdout.isatty() else PlainProgress(every_seconds)


class LiveProgress(RichProgressBar):
    """Lightning's rich bar over the whole run with losses, speed and time left."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, theme=RichProgressBarTheme(metrics_format=".4g"))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int | str | float | dict]:
        """The training loss and the last validation results."""
        return super().get_metrics(trainer, pl_module) | _shown(trainer)


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

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Print a line when it is time to."""
        now = time.monotonic()
        if trainer.is_global_zero and now - self._last >= self.every_seconds:
            self._last = now
            log.info("%s", self._line(trainer, now))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the results of a validation."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            results = {name: value for name, value in _shown(trainer).items() if name.startswith("val/")}
            new = {name: value for name, value in results.items() if self._told.get(name) != value}
            self._told = results  # a distance that was not measured this time keeps its old value
            log.info("validation at step %d  %s", trainer.global_step, _format(new))

    def _line(self, trainer: pl.Trainer, now: float) -> str:
        total = trainer.estimated_stepping_batches
        speed = (trainer.global_step - self._first_step) / (now - self._begin)
        losses = _format({k: v for k, v in _shown(trainer).items() if k.startswith("train/")})
        left = (total - trainer.global_step) / speed if speed > 0 else float("inf")
        end = f"  ETA {int(left // 60)}:{int(left % 60):02d}" if left < 1e7 else ""
        steps = f"{trainer.global_step}/{total:.0f}" if total < 1e12 else f"{trainer.global_step}"
        return f"step {steps}  {losses}  {speed:.1f} steps/s{end}"


def _shown(trainer: pl.Trainer) -> dict[str, float]:
    kept = ("train/loss", "val/loss", "val/fid_")
    return {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(kept)}


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
