"""Checkpoints: the best and the last."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from src.errors import require


class Checkpoint(ModelCheckpoint):
    """Keeps ``best-<step>.ckpt`` by ``monitor`` and ``last.ckpt``; the last is written once more when training ends.

    Lightning's ``save_last`` follows validations; a run that ends between two would lose the steps since.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str = "min") -> None:
        advice = (
            "must be logged at validations (val/...); with another optimized_metric set callback.checkpoint.monitor"
        )
        require(monitor.startswith("val/"), "monitor", monitor, advice)
        super().__init__(
            dirpath,
            filename="best-{step:08d}",
            monitor=monitor,
            mode=mode,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` at the very last step."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step > 0 and not trainer.fast_dev_run:
            trainer.save_checkpoint(f"{self.dirpath}/{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
