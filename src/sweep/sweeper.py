"""A study from the command line: ask Optuna for trials, launch them as jobs, tell it what came out."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from src.errors import require
from src.launch.job import FINISHED, Job
from src.launch.launcher import JobLauncher
from src.runtime.build import build, naming
from src.sweep.plots import draw_study
from src.sweep.space import Grid, Space, grid, parse, size
from src.sweep.study import Trials

log = logging.getLogger(__name__)

DIRECTIONS = ("minimize", "maximize")
OF_THE_DRIVER = ("sweep.trials=", "sweep.parallel=")  # may change when a study goes on, and are nothing to a job


def sweep(config: DictConfig, launcher: JobLauncher, arguments: Sequence[str]) -> None:
    """Run the study of ``config.sweep`` until it has ``trials`` in all.

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
        jobs = _run(config, trials, launcher, words, list(objectives))
    _show(trials, list(objectives))
    for job in jobs:
        if job.status not in FINISHED:
            raise job.error(jobs)


def _run(config: DictConfig, trials: Trials, launcher: JobLauncher, words: list[str], names: list[str]) -> list[Job]:
    """Keep as many jobs running as may at a time; as one ends the study learns from it and gives the next."""
    is_grid = config.search._target_ == f"{Grid.__module__}.{Grid.__name__}"
    total = min(config.sweep.trials, size(trials.space)) if is_grid else config.sweep.trials
    most = config.sweep.parallel or config.hydra.launcher.get("jobs") or 1
    running: dict[int, Trial] = {}
    over: list[Job] = []

    def jobs() -> Iterator[Job | None]:
        while True:
            for trial in trials.take(most - len(running), total, lambda known: _sampler(config, trials.space, known)):
                running[trial.number] = trial
                yield launcher.job(trial.number, [*words, *_words(trial)])
            if not running:
                return
            before = len(over)
            while len(over) == before:
                yield None

    def ended(job: Job) -> None:
        _finish(trials, running.pop(job.number), job, names)
        over.append(job)

    launcher.run(jobs(), ended)
    return over


def _words(trial: Trial) -> list[str]:
    values = {key: repr(value) if isinstance(value, float) else value for key, value in trial.params.items()}
    return [*(f"{key}={value}" for key, value in values.items()), f"sweep.trial={trial.number}"]


def _finish(trials: Trials, trial: Trial, job: Job, names: list[str]) -> None:
    """A job's metrics.json is its result: it has all objectives. A job that was stopped is no result at all."""
    if job.status in ("failed", "pruned"):
        trials.finish(trial, TrialState.FAIL if job.status == "failed" else TrialState.PRUNED)
    if job.status != "done":
        return
    metrics = json.loads((job.run_dir / "metrics.json").read_text(encoding="utf-8"))
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
    ours = config.hydra.launcher._target_ == "hydra_plugins.genbench_launcher.Launcher"
    require(ours, "hydra.launcher._target_", config.hydra.launcher._target_, "must be launcher=local, slurm or ray")
    for name in ("trials", "parallel"):
        value = config.sweep[name]
        whole = isinstance(value, int) and value >= 1
        require(whole or (value is None and name == "parallel"), f"sweep.{name}", value, "must be an integer >= 1")
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
