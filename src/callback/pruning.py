"""Pruning: a job of a sweep tells the study how it stands, and ends early where others stood better."""

from __future__ import annotations

import logging
import math
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
from optuna import Study, load_study
from optuna.pruners import BasePruner
from optuna.trial import Trial

from src.errors import require
from src.files import write_json
from src.launch.job import PRUNED
from src.sweep.storage import open_storage

log = logging.getLogger(__name__)


class Pruning(pl.Callback):
    """Reports ``monitor`` to trial number ``trial`` of the study after each validation, and asks ``pruner``.

    storage: as in ``open_storage``; the sweep directory is the one above ``dirpath``, the run directory. A pruned run
    leaves ``pruned.json`` and ends well, without a test. The storage is rank 0's business, the decision that of all
    ranks. A value that is not finite is not reported.
    """

    def __init__(
        self,
        pruner: BasePruner | None,
        study: str | None,
        storage: str | None,
        trial: int | None,
        monitor: str,
        dirpath: str,
    ) -> None:
        require(
            pruner is not None, "pruner", None, "is for the jobs of a sweep that has a sweep.pruner"
        )
        self.pruner, self.name, self.storage, self.number = pruner, study, storage, trial
        self.monitor, self.dirpath = monitor, Path(dirpath)
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; stop where the pruner says so and there is something left to save."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        prunes = (
            trainer.is_global_zero
            and math.isfinite(value)
            and self._report(trainer.global_step, value)
        )
        if (
            trainer.strategy.broadcast(prunes)
            and trainer.global_step < trainer.estimated_stepping_batches
        ):
            trainer.should_stop = self.pruned = True
            log.info(
                "pruned at step %d: %s=%.5g is worse than other trials were",
                trainer.global_step,
                self.monitor,
                value,
            )
            if trainer.is_global_zero:
                write_json(
                    self.dirpath / PRUNED, {"step": trainer.global_step, self.monitor: value}
                )

    def _report(self, step: int, value: float) -> bool:
        """Whether the trial is to be pruned; a step that is validated again after a resume is not reported again."""
        known = self._study.get_trials(deepcopy=False)[self.number]
        trial = Trial(self._study, known._trial_id)
        if step not in known.intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    @cached_property
    def _study(self) -> Study:
        storage = open_storage(self.storage, self.dirpath.parent)
        return load_study(study_name=self.name, storage=storage, pruner=self.pruner)
