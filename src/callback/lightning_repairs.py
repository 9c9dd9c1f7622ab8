"""Repairs: what Lightning's loops (2.6) do when they resume a run, and how it goes on exactly.

Lightning resumes between epochs. Our states are taken after any optimiser step, also before the
validation that follows it.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class LightningRepairs:
    """The repairs of one fit, in the order in which they are needed."""

    def __init__(self) -> None:
        self._limit: int | None = None  # trainer.max_steps while it is lifted

    def forget_timer(self, checkpoint: dict[str, Any]) -> None:
        """Let ``trainer.max_time`` count the time of this process alone.

        Lightning's Timer keeps the time used so far in the checkpoint: a run that had used it up
        could never be given more.
        """
        checkpoint.get("callbacks", {}).pop("Timer", None)

    def lift_limit(self, trainer: pl.Trainer, step: int) -> None:
        """Let a run that is resumed at its last ``step`` come as far as ``on_train_start``.

        ``FitLoop.run`` returns at once where ``max_steps`` is reached (``FitLoop.skip``), and a
        validation that was cut off after the last step would never be run.
        """
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn == "fit" and 0 < loop.max_steps <= step:
            self._limit = loop.max_steps
            loop.max_steps = step + 1

    def restore_limit(self, trainer: pl.Trainer) -> None:
        """Undo ``lift_limit``: the loop ends before another step."""
        if self._limit is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._limit

    def count_epochs(self, trainer: pl.Trainer) -> None:
        """Let the next epoch count as a new one where the resumed one had ended.

        Lightning infers from the counters of the checkpoint at which point of an epoch it was
        taken (``FitLoop.update_restart_stage``), and keeps this answer for the whole next epoch.
        After a state from the end of an epoch it would take the next one for the same again.
        """
        epochs = trainer.fit_loop.epoch_progress.total
        if epochs.processed == epochs.ready:
            trainer.fit_loop.reset_restart_stage()

    def validate(self, trainer: pl.Trainer) -> None:
        """Run the whole validation that was cut off, before training goes on.

        Lightning's own way is to count such a validation as done
        (``increment_progress_to_evaluation_end``), or to go on within it. A loop with
        ``restarting`` set keeps the counters of the checkpoint; without, it begins at batch 0.
        ``validating`` and ``training`` choose the loop that hooks and logged numbers belong to, as
        in ``_TrainingEpochLoop.on_advance_end``.
        """
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True


def log_at_last_step(trainer: pl.Trainer) -> None:
    """Let a validation after the fit log at the step at which the fit ended.

    Lightning resets its private count of steps (``_batches_that_stepped``) when a fit is over, and
    would log at step 0.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after this batch, by the private method that it calls next.

    There is no public one: the answer depends on epochs, batches, accumulation and early stops.
    """
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
