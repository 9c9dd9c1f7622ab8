"""Non-finite losses and gradients: found before the optimiser moves, recorded, and never trained on."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from src.dataset.base import Batch
from src.errors import NonFiniteError, require
from src.training.flight_record import write_flight_record

POLICIES = ("raise", "skip")
RECORDS = 3  # of a run: the first tell why


class Finite(pl.Callback):
    """Looks at the losses and gradients of every optimiser step; what is not finite stops the run, or is skipped.

    policy: ``raise`` ends the run (NonFiniteError); ``skip`` leaves the weights as they are and goes on, counted as
    ``train/skipped``. Either way ``<dirpath>/nonfinite-<step>/`` tells what happened (src/runtime/flight_record.py).
    With 16-bit floats infinite gradients are the loss scaler's business; only losses are looked at.
    """

    def __init__(self, dirpath: str, policy: str = "raise") -> None:
        require(policy in POLICIES, "policy", policy, f"must be {' or '.join(POLICIES)}")
        self.dirpath, self.policy, self.skipped = Path(dirpath), policy, 0
        self._batches: list[Batch] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the batches of this optimiser step: more than one where gradients are accumulated."""
        self._batches.append(batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Remember their losses."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Ask once per step, for all numbers together: it is the one time that the device is waited for."""
        losses = torch.stack(self._losses)
        gradients = (
            []
            if trainer.precision == "16-mixed"
            else [p.grad for p in pl_module.parameters() if p.grad is not None]
        )
        numbers = torch.stack([losses.abs().sum(), *torch._foreach_norm(gradients)])
        bad = not bool(numbers.isfinite().all())
        if trainer.world_size > 1:  # all ranks, or none
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            self._skip(trainer, losses)
        self._batches, self._losses = [], []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Say how many steps were skipped."""
        if self.skipped:
            pl_module.log("train/skipped", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, int]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def _skip(self, trainer: pl.Trainer, losses: Tensor) -> None:
        """Record the step; raise, or take the gradients away: the optimiser leaves alone what has none."""
        step, rate = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
        folder = self.dirpath / f"nonfinite-{step:08d}"
        own = folder if trainer.is_global_zero else folder / f"rank-{trainer.global_rank}"
        guilty = not bool(losses.isfinite().all())
        if self.skipped < RECORDS and (guilty or trainer.is_global_zero):
            write_flight_record(own, trainer, self._batches, losses)
        if self.policy == "raise":
            loss = (losses.sum() * trainer.accumulate_grad_batches / len(losses)).item()
            images = [index for batch in self._batches for index in batch.indices]
            raise NonFiniteError(
                f"train/loss={loss:g} or its gradient at step {step} (optimizer.lr={rate:g}, images {images[:3]} of "
                f"{len(images)}): not finite, recorded in {folder}; lower optimizer.lr, set "
                "trainer.gradient_clip_val, use trainer.precision=32-true, or go on with on_nonfinite=skip"
            )
        self.skipped += 1
        for parameter in trainer.lightning_module.parameters():
            parameter.grad = None
