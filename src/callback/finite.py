"""Non-finite losses and gradients: found at their step, never trained on, and recorded."""

from __future__ import annotations

import functools
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from src.dataset.base import Batch
from src.errors import NonFiniteError, require
from src.foreign import counts
from src.training.flight_record import Step, write_flight_record

POLICIES = ("raise", "skip")
RECORDS = 3  # of a run: the first are enough to see why


class Question:
    """Whether an optimiser step was finite, which the host asks later.

    The answer of a GPU is copied as soon as it is there: reading it then waits for nothing that
    the GPU was given since.

    Arguments:
        trainer: of the run.
        step: what is recorded where it was not.
        bad: () float on the device, 0 where all is finite.
    """

    def __init__(self, trainer: pl.Trainer, step: Step, bad: Tensor) -> None:
        self.trainer = trainer
        self.step = step
        self._bad = bad
        self._copied: torch.cuda.Event | None = None
        if bad.is_cuda:
            self._bad = torch.empty((), pin_memory=True).copy_(bad, non_blocking=True)
            self._copied = torch.cuda.current_stream(bad.device).record_event()

    def is_bad(self) -> bool:
        """The answer: the one wait for the device in a step."""
        with self.trainer.profiler.profile("waiting"):
            if self._copied is not None:
                self._copied.synchronize()
            return self._bad.item() != 0


class Finite(pl.Callback):
    """Checks the losses and gradients of every optimiser step.

    Where they are not finite, ``<dirpath>/nonfinite-<step>/`` records what happened
    (src/training/flight_record.py). With 16-bit floats infinite gradients are left to the loss
    scaler; only losses are checked.

    A fused optimiser skips such a step by itself. The device is asked later, when it has long
    answered: before the next gradients, a row of the log, a validation, a checkpoint and the end.
    Others are asked before they step.

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
        self._open: Question | None = None  # not asked yet

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the batches of this optimiser step; ask before its row is logged."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            self._ask()
        self._batches.append(batch)

    def on_before_zero_grad(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Ask, before the gradients of the last step are lost."""
        self._ask()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep the losses."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Put all numbers of a step into one, on the device."""
        gradients = pl_module.gradients
        numbers = [*self._losses]
        if trainer.precision != "16-mixed":
            numbers.append(gradients.norm())
        total = functools.reduce(torch.add, numbers)
        bad = (total - total).ne_(0)  # NaN - NaN and inf - inf are NaN, which is not 0
        if trainer.world_size > 1:  # all ranks, or none; Lightning's reduce has a barrier
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        rate = optimizer.param_groups[0]["lr"]
        step = Step(trainer.global_step, trainer.current_epoch, rate, self._batches, self._losses)
        self._open = Question(trainer, step, bad)
        self._batches = []
        self._losses = []
        if gradients.fused:
            gradients.skip_if(bad)
        else:
            self._ask()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Log how many steps were skipped, where numbers are logged."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._ask()
            if self.skipped:
                pl_module.log("train/skipped", float(self.skipped), batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask about the last step before."""
        self._ask()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask about the last step, and count it."""
        self._ask()
        if self.skipped:
            trainer.callback_metrics["train/skipped"] = torch.tensor(float(self.skipped))

    def state_dict(self) -> dict[str, int]:
        """How many steps were skipped; asks, before the state after the open step is written."""
        self._ask()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = counts(state_dict, "skipped")["skipped"]

    def _ask(self) -> None:
        """Raise or count where the open step was not finite."""
        question, self._open = self._open, None
        if question is None or not question.is_bad():
            return
        trainer, step = question.trainer, question.step
        folder = self.dirpath / f"nonfinite-{step.number:08d}"
        own = folder if trainer.is_global_zero else folder / f"rank-{trainer.global_rank}"
        losses = torch.stack(step.losses)
        guilty = not bool(losses.isfinite().all())
        if self.skipped < RECORDS and (guilty or trainer.is_global_zero):
            write_flight_record(own, trainer, step)
        if self.policy == "raise":
            raise _error(step, trainer.accumulate_grad_batches, folder)
        self.skipped += 1
        trainer.lightning_module.gradients.remove()


def _error(step: Step, accumulate: int, folder: Path) -> NonFiniteError:
    loss = torch.stack(step.losses).mean().item() * accumulate
    images = [index for batch in step.batches for index in batch.indices.tolist()]
    return NonFiniteError(
        f"train/loss={loss:g} or its gradient at step {step.number} "
        f"(optimizer.lr={step.lr:g}, images {images[:3]} of {len(images)}): not finite, recorded "
        f"in {folder}; lower optimizer.lr, set trainer.gradient_clip_val, "
        "use trainer.precision=32-true, or go on with on_nonfinite=skip"
    )
