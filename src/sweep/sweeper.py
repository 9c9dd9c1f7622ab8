"""A study from the command line: trials from Optuna, launched as jobs, and their results back."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import optuna
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from src.config.build import build, naming
from src.config.words import nearest
from src.errors import ConfigError, first_line, require
from src.foreign import printable
from src.launch.job import FINISHED, Job, JobFailed
from src.launch.launcher import JobLauncher
from src.report.study import complete, draw_study
from src.rundir.numbers import read_numbers
from src.sweep.space import Grid, Space, grid, parse, size
from src.sweep.study import OWNER, Trials

log = logging.getLogger(__name__)

DIRECTIONS = ("minimize", "maximize")
# overrides that may change when a study goes on, and are not passed to jobs
OF_THE_DRIVER = ("sweep.trials=",)
CALLBACKS = "[generation,grid,finite,checkpoint,lr_monitor,progress,throughput,pruning]"


def sweep(config: DictConfig, launcher: JobLauncher, arguments: Sequence[str]) -> None:
    """Run the study of ``config.sweep`` until it has ``trials`` in all.

    The job of trial n is job n of the sweep directory. A failed job is a failed trial; its error is
    raised when everything else is done. Raises ConfigError before any job where the study cannot be
    run as it is described.

    Arguments:
        config: the driver's composed configuration.
        launcher: of the jobs.
        arguments: the typed overrides, which every job gets, with those of its trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    typed = [text for text in arguments if not text.startswith(OF_THE_DRIVER)]
    space, shared = parse(config, typed)
    objectives = _objectives(config)
    _check(config, objectives)
    _sampler(config, space, 0)  # what it refuses is refused before there is a study
    folder = Path(config.hydra.sweep.dir).expanduser().resolve()
    study = config.sweep
    trials = Trials(study.study, study.storage, objectives, space, _fixed(shared), folder)
    with trials.driving():
        jobs = _run(config, trials, launcher, shared, list(objectives))
    _show(trials, list(objectives))
    for job in jobs:
        if job.status not in FINISHED:
            raise job.error(jobs)
    failed = trials.study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    if failed:
        first = f"trial {failed[0].number} first; see {folder / 'jobs.csv'}"
        what = f"{len(failed)} trials of the study have failed, {first}"
        raise JobFailed(f"sweep.study={config.sweep.study}: {what}", None)


def _fixed(shared: Sequence[str]) -> dict[str, str]:
    """The settings that all jobs of a study share: name -> value."""
    ours = [text for text in shared if not text.startswith(("launcher=", "resume=", "hydra"))]
    return dict(text.partition("=")[::2] for text in ours)


def _run(
    config: DictConfig, trials: Trials, launcher: JobLauncher, shared: list[str], names: list[str]
) -> list[Job]:
    """Keep as many jobs running as allowed; as one ends, the study gets its result and a new trial.

    Returns the jobs that have ended.
    """
    total = config.sweep.trials
    if config.search._target_ == f"{Grid.__module__}.{Grid.__name__}":
        total = min(total, size(trials.space))
    most = launcher.at_once
    running: dict[int, Trial] = {}
    over: list[Job] = []

    def sampler(known: int) -> BaseSampler:
        return _sampler(config, trials.space, known)

    def ended(job: Job) -> None:
        _finish(trials, running[job.number], job, names)
        del running[job.number]
        over.append(job)

    def jobs() -> Iterator[Job | None]:
        while True:
            before = len(over)
            for trial in trials.take(most - len(running), total, sampler):
                running[trial.number] = trial
                job = _job(launcher, trial, shared)
                if job.status == "failed":
                    ended(job)
                else:
                    yield job
            if not running and len(over) == before:
                return
            while running and len(over) == before:
                yield None

    launcher.run(jobs(), ended)
    return over


def _job(launcher: JobLauncher, trial: Trial, shared: list[str]) -> Job:
    """The job of a trial; a failed one where its settings make no configuration."""
    own = _overrides(trial)
    try:
        return launcher.job(trial.number, [*shared, *own])
    except (HydraException, OmegaConfBaseException) as error:
        name = " ".join(own[:-1])
        run_dir = launcher.sweep_dir / f"{trial.number}-none"
        job = Job(trial.number, [*shared, *own], run_dir, "", name=name)
        job.refuse(f"{name}: {first_line(error)}")
        return job


def _overrides(trial: Trial) -> list[str]:
    """The overrides of a trial; floats with all their digits."""
    overrides = []
    for key, value in trial.params.items():
        text = repr(value) if isinstance(value, float) else value
        overrides.append(f"{key}={text}")
    return [*overrides, f"sweep.trial={trial.number}"]


def _finish(trials: Trials, trial: Trial, job: Job, names: list[str]) -> None:
    """Give the result of a job to the study: metrics.json, which must have all objectives.

    A job that was stopped has none.
    """
    if job.status == "failed":
        trials.finish(trial, TrialState.FAIL)
    if job.status == "pruned":
        trials.finish(trial, TrialState.PRUNED)
    if job.status != "done":
        return
    metrics = read_numbers(job.run_dir / "metrics.json")
    for name in names:
        if name not in metrics:
            there = f"{nearest(name, list(metrics))}; there are {', '.join(metrics)}"
            where = job.run_dir / "metrics.json"
            raise ConfigError(f"sweep.objectives.{name}: is not in {where}{there}")
    values = [metrics[name] for name in names]
    if any(value is None or not math.isfinite(value) for value in values):
        job.refuse(f"has no finite {' and '.join(names)}")
        log.warning("trial %d: %s, and counts as failed", trial.number, job.detail)
        trials.finish(trial, TrialState.FAIL)
    else:
        trials.finish(trial, TrialState.COMPLETE, values)


def _objectives(config: DictConfig) -> dict[str, str]:
    """Name -> direction."""
    return dict(config.sweep.objectives or {config.optimized_metric: "minimize"})


def _check(config: DictConfig, objectives: Mapping[str, str]) -> None:
    """Raise ConfigError for settings that no study can have."""
    kind = config.hydra.launcher._target_
    ours = kind == "hydra_plugins.genbench_launcher.Launcher"
    require(ours, "hydra.launcher._target_", kind, "must be launcher=local, slurm or ray")
    whole = isinstance(config.sweep.trials, int) and config.sweep.trials >= 1
    require(whole, "sweep.trials", config.sweep.trials, "must be an integer >= 1")
    for name, direction in objectives.items():
        known = direction in DIRECTIONS
        allowed = f"must be {' or '.join(DIRECTIONS)}"
        require(known, f"sweep.objectives.{name}", direction, allowed)
    if config.sweep.pruner is not None:
        _check_pruner(config, objectives)


def _check_pruner(config: DictConfig, objectives: Mapping[str, str]) -> None:
    """Raise ConfigError where the jobs could not be pruned."""
    only = list(objectives) == [config.optimized_metric]
    needed = f"pruning needs one objective, the optimized_metric ({config.optimized_metric})"
    require(only, "sweep.objectives", ",".join(objectives), f"{needed}; or sweep.pruner=null")
    pruner = build(config, "sweep.pruner")
    advice = f"the jobs need the callback: callback={CALLBACKS}"
    require("pruning" in config.callback, "sweep.pruner", type(pruner).__name__, advice)


def _sampler(config: DictConfig, space: Space, known: int) -> BaseSampler:
    """A sampler for a study with ``known`` trials, which are part of its seed.

    With an equal seed it would draw the first trials again.
    """
    make = build(config, "search")
    with naming("search"):
        if make.func is Grid:
            return make(grid(space))
        return make(seed=(config.seed * 1_000_003 + known) % 2**32)


def _show(trials: Trials, names: list[str]) -> None:
    """Print the best trials of the study, each with its run directory, and draw it."""
    picture = trials.folder / "study.png" if complete(trials.study) else ""
    states = [trial.state.name.lower() for trial in trials.study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"\n{printable(f'Study {trials.study.study_name}: {counts}   {picture}')}")
    for trial in trials.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trials.has_driver(trial):
            owner = trial.user_attrs[OWNER]
            advice = "if that is dead, delete its .lock and start again"
            log.warning("trial %d is with the driver %s; %s", trial.number, owner, advice)
    for trial in trials.best():
        named = zip(names, trial.values, strict=True)
        values = "  ".join(f"{name}={value:.5g}" for name, value in named)
        settings = " ".join(f"{key}={value}" for key, value in trial.params.items())
        place = trials.directory(trial.number)
        print(printable(f"  best  {trial.number}  {values}  {settings}  {place}"))
    if picture:
        draw_study(trials.study, names, picture)
