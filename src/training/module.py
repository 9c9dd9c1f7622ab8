"""The one LightningModule: step, logging, optimiser and learning-rate schedule of every model."""

from __future__ import annotations

from collections.abc import Callable
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
    """Trains any GenerativeModel on its own loss; logs ``train/*`` per step, ``val/*`` and ``test/*`` per epoch.

    optimizer: parameters -> Optimizer. lr_schedule: (optimizer, total_steps) -> LRScheduler stepped per optimiser step.
    """

    def __init__(
        self,
        model: GenerativeModel,
        optimizer: Callable[..., Optimizer],
        lr_schedule: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer, self._lr_schedule = optimizer, lr_schedule

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
        """The optimiser over all trainable parameters and the schedule, stepped per optimiser step."""
        optimizer = self.make_optimizer()
        if self._lr_schedule is None:
            return {"optimizer": optimizer}
        scheduler = self.make_lr_schedule(optimizer, self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def make_optimizer(self) -> Optimizer:
        """The optimiser over all trainable parameters."""
        return self._optimizer([p for p in self.parameters() if p.requires_grad])

    def make_lr_schedule(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        """The learning-rate schedule over a run of ``total_steps`` optimiser steps."""
        return self._lr_schedule(optimizer, total_steps=total_steps)

    def _losses(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        losses = self.model.loss(batch.x, batch.label, generators(batch.seeds))
        training = stage == "train"
        values = losses.values()
        if (
            training and (self.global_step + 1) % self.trainer.log_every_n_steps == 0
        ):  # what is logged is of all ranks
            values = self.trainer.strategy.reduce(
                torch.stack([value.detach() for value in values]), reduce_op="mean"
            )
        named = {f"{stage}/{name}": value for name, value in zip(losses, values, strict=True)}
        self.log_dict(
            named,
            on_step=training,
            on_epoch=not training,
            sync_dist=not training,
            batch_size=len(batch.x),
        )
        return losses
