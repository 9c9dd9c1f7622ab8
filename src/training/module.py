"""The one LightningModule: step, logging, optimiser and learning-rate schedule of every model."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

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
        self._means: dict[str, MeanMetric] = {}  # of an evaluation; no part of a checkpoint

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; dropout is keyed like all other noise."""
        self.model.step = self.global_step
        torch.manual_seed(mix(batch.seeds[0], "dropout"))
        losses = self._losses(batch)
        values = losses.values()
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            # what is logged is of all ranks
            own = torch.stack([value.detach() for value in values])
            values = self.trainer.strategy.reduce(own, reduce_op="mean")
        named = {f"train/{name}": value for name, value in zip(losses, values, strict=True)}
        self.log_dict(named, on_step=True, on_epoch=False, batch_size=len(batch.x))
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of a validation that was cut off."""
        self._means = {}

    def on_test_epoch_start(self) -> None:
        """Forget the validation."""
        self._means = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of the validation split."""
        self._average("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of the test split."""
        self._average("test", batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """What Lightning steps after every batch, or every few of them."""
        if self._scheduler is None:
            return {"optimizer": self._optimizer}
        schedule = {"scheduler": self._scheduler, "interval": "step"}
        return {"optimizer": self._optimizer, "lr_scheduler": schedule}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.model.loss(batch.x, batch.label, generators(batch.seeds))

    def _average(self, stage: str, batch: Batch) -> None:
        """Log the mean of each loss over the images of all batches and ranks; NaN stays NaN.

        A batch counts as its sum and zeros, one value per image: without a treatment of NaN,
        torchmetrics 1.9 ignores weights.
        """
        for name, value in self._losses(batch).items():
            key, num = f"{stage}/{name}", len(batch.x)
            mean = self._means.setdefault(key, MeanMetric(nan_strategy="disable").to(value.device))
            total = value.detach().to(mean.dtype) * num
            mean.update(F.pad(total.view(1), (0, num - 1)))
            self.log(key, mean, on_step=False, on_epoch=True, metric_attribute=key)
