"""The one LightningModule: step, logging, optimiser and learning-rate schedule of every model."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.dataset.base import Batch
from src.model.base import GenerativeModel
from src.noise import generators, mix


class GenerativeModule(pl.LightningModule):
    """Trains any GenerativeModel on its own loss; logs ``train/*`` per step, the others per epoch.

    Arguments:
        model: what is trained.
        optimizer: over its parameters; None where nothing is trained.
        scheduler: of the learning rate, stepped per optimiser step.
    """

    def __init__(
        self,
        model: GenerativeModel,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer, self._scheduler = optimizer, scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; dropout is keyed like all other noise."""
        self.model.step = self.global_step
        torch.manual_seed(mix(batch.seeds[0], "dropout"))
        return self._losses(batch, "train")["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of the validation split."""
        self._losses(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of the test split."""
        self._losses(batch, "test")

    def configure_optimizers(self) -> dict[str, Any]:
        """What Lightning steps after every batch, or every few of them."""
        if self._scheduler is None:
            return {"optimizer": self._optimizer}
        schedule = {"scheduler": self._scheduler, "interval": "step"}
        return {"optimizer": self._optimizer, "lr_scheduler": schedule}

    def _losses(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        losses = self.model.loss(batch.x, batch.label, generators(batch.seeds))
        training = stage == "train"
        values = losses.values()
        if training and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            # what is logged is of all ranks
            own = torch.stack([value.detach() for value in values])
            values = self.trainer.strategy.reduce(own, reduce_op="mean")
        named = {f"{stage}/{name}": value for name, value in zip(losses, values, strict=True)}
        self.log_dict(
            named,
            on_step=training,
            on_epoch=not training,
            sync_dist=not training,
            batch_size=len(batch.x),
        )
        return losses
