"""Pruning: a job of a sweep reports its values to the study, and ends early where it is behind."""

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
    """Reports a value to the study after each validation, and stops where the pruner decides so.

    A pruned run leaves ``pruned.json`` and ends well, without a test. Rank 0 alone uses the
    storage; its decision goes to all ranks. A value that is not finite is not reported.

    Arguments:
        pruner: of Optuna.
        study: its name.
        storage: as in ``open_storage``.
        trial: number of this job's trial.
        monitor: name of the value.
        dirpath: the run directory, below the sweep directory.
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
        allowed = "is for the jobs of a sweep that has a sweep.pruner"
        require(pruner is not None, "pruner", None, allowed)
        self.pruner = pruner
        self.name = study
        self.storage = storage
        self.number = trial
        self.monitor = monitor
        self.dirpath = Path(dirpath)
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; stop where the trial is pruned and there are steps left to save."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        step = trainer.global_step
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        prunes = False
        if trainer.is_global_zero and math.isfinite(value):
            prunes = self._report(step, value)
        if not trainer.strategy.broadcast(prunes) or step >= trainer.estimated_stepping_batches:
            return
        trainer.should_stop = True
        self.pruned = True
        why = f"{self.monitor}={value:.5g} is worse than other trials were"
        log.info("pruned at step %d: %s", step, why)
        if trainer.is_global_zero:
            write_json(self.dirpath / PRUNED, {"step": step, self.monitor: value})

    def _report(self, step: int, value: float) -> bool:
        """Whether the trial is to be pruned.

        A step that is validated again after a resume is not reported again.
        """
        known = self._study.get_trials(deepcopy=False)[self.number]
        trial = Trial(self._study, known._trial_id)
        if step not in known.intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    @cached_property
    def _study(self) -> Study:
        storage = open_storage(self.storage, self.dirpath.parent)
        return load_study(study_name=self.name, storage=storage, pruner=self.pruner)
