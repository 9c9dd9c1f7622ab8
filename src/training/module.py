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
from src.noise import mix
from src.training.gradients import Gradients
from src.training.restored import check_state


class GenerativeModule(pl.LightningModule):
    """Trains any GenerativeModel on its own loss; logs ``train/*`` at steps, the others per epoch.

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
        self.gradients = None if optimizer is None else Gradients(optimizer)
        self._means: dict[str, MeanMetric] = {}  # of an evaluation; no part of a checkpoint
        self._micro_batches: list[dict[str, Tensor]] = []  # losses of the optimiser step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError where the state of the training does not fit (see ``restoring``)."""
        check_state(checkpoint, self._optimizer, self._scheduler)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; dropout is keyed like all other noise."""
        step = self.global_step
        self.model.step = step
        _seed(mix(*batch.noise.key, "dropout", batch.noise.first), batch.x.device)
        losses = self._losses(batch)
        self._keep(losses, batch_idx)
        if (step + 1) % self.trainer.log_every_n_steps == 0 or step + 1 == self.trainer.max_steps:
            self._log_step(batch_idx)
        return losses["loss"]

    def on_train_end(self) -> None:
        """Give callbacks the losses of the last step, which nobody knew to be the last."""
        if self._micro_batches:
            self.trainer.callback_metrics.update(self._means_of_step())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that was measured for the check, in the pass of the optimiser."""
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.gradients.clip(gradient_clip_val)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients, as torch does, in a tenth of the time."""
        self.gradients.remove()

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
        return self.model.loss(batch.x, batch.label, batch.noise.generators())

    def _keep(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the losses of an optimiser step on the device, those of each micro-batch."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._micro_batches = []
        self._micro_batches.append({name: value.detach() for name, value in losses.items()})

    def _means_of_step(self) -> dict[str, Tensor]:
        """Means over micro-batches and ranks, on the CPU."""
        names = list(self._micro_batches[0])
        rows = [torch.stack([losses[name] for name in names]) for losses in self._micro_batches]
        own = torch.stack(rows).mean(0)
        values = self.trainer.strategy.reduce(own, reduce_op="mean").cpu()
        return {f"train/{name}": value for name, value in zip(names, values, strict=True)}

    def _log_step(self, batch_idx: int) -> None:
        """Give the losses of an optimiser step to callbacks and loggers, at its last micro-batch.

        ``self.log`` takes a millisecond for the same. Lightning's property gives the dictionary
        itself.
        """
        accumulate = self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % accumulate and not self.trainer.is_last_batch:
            return
        named = self._means_of_step()
        self.trainer.callback_metrics.update(named)
        step = self.global_step
        if (step + 1) % self.trainer.log_every_n_steps:
            return  # the last step: for callbacks alone
        numbers = {name: value.item() for name, value in named.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**numbers, "epoch": self.current_epoch}, step=step)
            logger.save()

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


def _seed(seed: int, device: torch.device) -> None:
    """Seed the global generators of CPU and ``device``: ``torch.manual_seed`` asks for all others.

    That costs a millisecond where there are none.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
