"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.errors import require
from src.foreign import counts


class EMA(pl.Callback):
    """Averages the weights after every optimiser step; validation, test, samples use the average.

    Unlike with Lightning's ``WeightAveraging`` the average stays in place during the whole of
    validation, so metric callbacks see it. It is kept in float32 on the model's device and saved as
    ``ema`` in the checkpoint; ``load_model`` prefers it.

    Arguments:
        decay: of the average, reached by the warm-up min(decay, (1 + n) / (10 + n)) after n
            updates (as in TensorFlow's ExponentialMovingAverage), so that the average is useful
            from the first validation on.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require(0 <= decay < 1, "decay", decay, "must be in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights themselves, or with the average that the checkpoint brought."""
        restored = self.average
        self.average = {}
        self._weights = _parameters(pl_module)
        for name, parameter in self._weights.items():
            start = restored.get(name, parameter.detach())
            self.average[name] = start.to(parameter.device, copy=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps from here: only now has a checkpoint's step been restored."""
        self._seen = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Update once per optimiser step: micro-batches of an accumulation do not count."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, weights = list(self.average.values()), list(self._weights.values())
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place."""
        self._swap(pl_module, into_average=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the training weights back."""
        self._swap(pl_module, into_average=False)

    on_test_start = on_validation_start
    on_test_end = on_validation_end

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Never leave the average where the training weights belong."""
        self._swap(pl_module, into_average=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average under ``ema``, named as in the model."""
        checkpoint["ema"] = {name: value.detach().clone() for name, value in self.average.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average of the checkpoint; else ``on_fit_start`` begins with the weights."""
        self.average = dict(checkpoint.get("ema", {}))

    def state_dict(self) -> dict[str, int]:
        """The number of updates, which the warm-up depends on."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the number of updates."""
        self.updates = counts(state_dict, "updates")["updates"]

    def _swap(self, pl_module: pl.LightningModule, into_average: bool) -> None:
        """Exchange weights and average by pointer, where there is an average."""
        if self._swapped == into_average or not self.average:
            return
        for name, parameter in _parameters(pl_module).items():
            parameter.data, self.average[name] = self.average[name], parameter.data
        self._swapped = into_average


def _parameters(pl_module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in pl_module.model.named_parameters() if p.requires_grad}
