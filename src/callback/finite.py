"""Non-finite losses and gradients: found before the optimiser's step, and recorded."""

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
RECORDS = 3  # of a run: the first are enough to see why


class Finite(pl.Callback):
    """Checks the losses and gradients of every optimiser step.

    Where they are not finite, ``<dirpath>/nonfinite-<step>/`` records what happened
    (src/training/flight_record.py). With 16-bit floats infinite gradients are left to the loss
    scaler; only losses are checked.

    Arguments:
        dirpath: the run directory.
        policy: ``raise`` ends the run (NonFiniteError); ``skip`` leaves the weights as they are
            and goes on, counted as ``train/skipped``.
    """

    def __init__(self, dirpath: str, policy: str = "raise") -> None:
        require(policy in POLICIES, "policy", policy, f"must be {' or '.join(POLICIES)}")
        self.dirpath = Path(dirpath)
        self.policy = policy
        self.skipped = 0
        self._batches: list[Batch] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the batches of this optimiser step: several where gradients are accumulated."""
        self._batches.append(batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep their losses."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check all numbers of a step together: the one time that the device is waited for."""
        losses = torch.stack(self._losses)
        gradients = []
        if trainer.precision != "16-mixed":
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        numbers = torch.stack([losses.abs().sum(), *torch._foreach_norm(gradients)])
        bad = not bool(numbers.isfinite().all())
        if trainer.world_size > 1:  # all ranks, or none
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            self._skip(trainer, losses)
        self._batches = []
        self._losses = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Log how many steps were skipped."""
        if self.skipped:
            pl_module.log("train/skipped", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, int]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def _skip(self, trainer: pl.Trainer, losses: Tensor) -> None:
        """Record the step; raise, or remove the gradients: the optimiser skips weights without."""
        step = trainer.global_step
        folder = self.dirpath / f"nonfinite-{step:08d}"
        own = folder if trainer.is_global_zero else folder / f"rank-{trainer.global_rank}"
        guilty = not bool(losses.isfinite().all())
        if self.skipped < RECORDS and (guilty or trainer.is_global_zero):
            write_flight_record(own, trainer, self._batches, losses)
        if self.policy == "raise":
            raise self._error(trainer, losses, folder)
        self.skipped += 1
        for parameter in trainer.lightning_module.parameters():
            parameter.grad = None

    def _error(self, trainer: pl.Trainer, losses: Tensor, folder: Path) -> NonFiniteError:
        loss = (losses.sum() * trainer.accumulate_grad_batches / len(losses)).item()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        images = [index for batch in self._batches for index in batch.indices]
        return NonFiniteError(
            f"train/loss={loss:g} or its gradient at step {trainer.global_step} "
            f"(optimizer.lr={rate:g}, images {images[:3]} of {len(images)}): not finite, recorded "
            f"in {folder}; lower optimizer.lr, set trainer.gradient_clip_val, "
            "use trainer.precision=32-true, or go on with on_nonfinite=skip"
        )
