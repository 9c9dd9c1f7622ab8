"""A study from the command line: ask Optuna for trials, launch them as jobs, tell it what came out."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import optuna
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from src.errors import require
from src.launch.job import recorded
from src.launch.table import print_table
from src.runtime.build import build, naming
from src.sweep.plots import draw_study
from src.sweep.space import Grid, Space, grid, parse, size
from src.sweep.storage import PRUNED
from src.sweep.study import Trials

log = logging.getLogger(__name__)

DIRECTIONS = ("minimize", "maximize")
OF_THE_DRIVER = ("sweep.trials=", "sweep.batch=")  # may change when a study goes on, and are nothing to a job


def sweep(config: DictConfig, launcher: Launcher, arguments: Sequence[str]) -> list[JobReturn]:
    """Run the study of ``config.sweep`` until it has ``trials`` in all; returns the jobs that this driver launched.

    config: the driver's composed configuration. arguments: the words typed, which every job gets, with those of its
    trial. The job of trial n is job n of the sweep directory. A failed job is a failed trial; its error is raised when
    everything else is done. Raises ConfigError before any job where the study cannot be run as it is described.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    space, words = parse(config, [word for word in arguments if not word.startswith(OF_THE_DRIVER)])
    objectives = _objectives(config)
    _check(config, objectives)
    _sampler(config, space, 0)  # what it refuses is refused before there is a study
    folder = Path(config.hydra.sweep.dir).expanduser().resolve()
    trials = Trials(config.sweep.study, config.sweep.storage, objectives, space, folder)
    with trials.driving():
        results = list(_launched(config, trials, launcher, words, list(objectives)))
    print_table(folder)
    _show(trials, list(objectives))
    failed = [result for result in results if result.status != JobStatus.COMPLETED]
    if failed:
        raise failed[0]._return_value
    return results


def _launched(
    config: DictConfig, trials: Trials, launcher: Launcher, words: list[str], names: list[str]
) -> Iterator[JobReturn]:
    """Batch by batch, the ended jobs."""
    is_grid = config.search._target_ == f"{Grid.__module__}.{Grid.__name__}"
    total = min(config.sweep.trials, size(trials.space)) if is_grid else config.sweep.trials
    most = config.sweep.batch or config.hydra.launcher.get("jobs") or 1
    while batch := trials.take(most, total, lambda known: _sampler(config, trials.space, known)):
        for part in _consecutive(batch):
            jobs = [[*words, *_words(trial)] for trial in part]
            for trial, result in zip(part, launcher.launch(jobs, initial_job_idx=part[0].number), strict=True):
                _finish(trials, trial, result, names)
                yield result


def _words(trial: Trial) -> list[str]:
    values = {key: repr(value) if isinstance(value, float) else value for key, value in trial.params.items()}
    return [*(f"{key}={value}" for key, value in values.items()), f"sweep.trial={trial.number}"]


def _consecutive(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Runs of trials whose numbers follow each other: a launcher counts its jobs up from a first number."""
    part: list[Trial] = []
    for trial in trials:
        if part and trial.number != part[-1].number + 1:
            yield part
            part = []
        part.append(trial)
    if part:
        yield part


def _finish(trials: Trials, trial: Trial, result: JobReturn, names: list[str]) -> None:
    """A job's metrics.json is its result: it has all objectives. A job that was stopped is no result at all."""
    if result.status != JobStatus.COMPLETED:
        stopped = {job["number"] for job in recorded(trials.folder) if job["status"] == "stopped"}
        if trial.number not in stopped:
            trials.finish(trial, TrialState.FAIL)
        return
    if (Path(result.working_dir) / PRUNED).exists():
        trials.finish(trial, TrialState.PRUNED)
        return
    metrics = json.loads((Path(result.working_dir) / "metrics.json").read_text(encoding="utf-8"))
    values = [metrics.get(name) for name in names]
    if any(value is None or not math.isfinite(value) for value in values):
        log.warning("trial %d: has no finite %s and counts as failed", trial.number, " and ".join(names))
        trials.finish(trial, TrialState.FAIL)
    else:
        trials.finish(trial, TrialState.COMPLETE, values)


def _objectives(config: DictConfig) -> dict[str, str]:
    """Name -> direction."""
    return dict(config.sweep.objectives or {config.optimized_metric: "minimize"})


def _check(config: DictConfig, objectives: Mapping[str, str]) -> None:
    """Raise ConfigError for settings that no study can have."""
    for name in ("trials", "batch"):
        value = config.sweep[name]
        whole = isinstance(value, int) and value >= 1
        require(whole or (value is None and name == "batch"), f"sweep.{name}", value, "must be an integer >= 1")
    for name, direction in objectives.items():
        require(direction in DIRECTIONS, f"sweep.objectives.{name}", direction, f"must be {' or '.join(DIRECTIONS)}")
    if config.sweep.pruner is not None:
        only = list(objectives) == [config.optimized_metric]
        allowed = f"pruning needs one objective, the optimized_metric ({config.optimized_metric}); or sweep.pruner=null"
        require(only, "sweep.objectives", ",".join(objectives), allowed)
        pruner = build(config, "sweep.pruner")
        advice = "the jobs need the callback: callback=[generation,grid,finite,checkpoint,lr_monitor,progress,pruning]"
        require("pruning" in config.callback, "sweep.pruner", type(pruner).__name__, advice)


def _sampler(config: DictConfig, space: Space, known: int) -> BaseSampler:
    """A sampler for a study with ``known`` trials: an equal seed would draw again what it drew at the first."""
    make = build(config, "search")
    with naming("search"):
        return make(grid(space)) if make.func is Grid else make(seed=(config.seed * 1_000_003 + known) % 2**32)


def _show(trials: Trials, names: list[str]) -> None:
    """Draw the study and print its best trials, each with its run directory."""
    draw_study(trials, names, trials.folder / "study.png")
    states = [trial.state.name.lower() for trial in trials.study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"\nStudy {trials.study.study_name}: {counts}   {trials.folder / 'study.png'}")
    for trial in trials.best():
        values = "  ".join(f"{name}={value:.5g}" for name, value in zip(names, trial.values, strict=True))
        settings = " ".join(f"{key}={value}" for key, value in trial.params.items())
        print(f"  best  {trial.number}  {values}  {settings}  {trials.directory(trial.number)}")
