"""The launcher of multiruns: each job a process of the plain command line, on whatever backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig

from src.errors import ConfigError
from src.launch.job import Job, JobFailed, differing, recorded
from src.launch.table import print_table, write_table
from src.runtime.cli import quiet_logging
from src.runtime.interruption import INTERRUPTION

log = logging.getLogger(__name__)
FINISHED = ("done", "pruned")
OF_THE_DRIVER = ("launcher=", "resume=")  # overrides that are nothing to a job


class JobLauncher(Launcher):
    """Runs the jobs that a sweeper asks for and says what became of each: a table, ``jobs.csv``, an exit code.

    backend: class of the backend, which takes ``settings`` and has ``run(jobs)``: an iterator of (job, exit code, why)
    as jobs end, which stops what is running when it is closed. Jobs that are finished are not done again; jobs that
    are not go on from their checkpoint. A failed job stops no other one.
    """

    def __init__(self, backend: str, **settings: Any) -> None:  # noqa: ANN401 (checked by the backend)
        self.backend, self.settings = backend, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by the sweeper."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run a batch. Raises ConfigError where it is empty, or the directory has other jobs under these numbers."""
        setup_globals()
        quiet_logging()
        if not job_overrides:
            raise ConfigError("--multirun: the sweep is empty; give at least one value for each setting that is swept")
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0" or "LOCAL_RANK" in os.environ:
            raise ConfigError("--multirun under torchrun or srun: would run once per rank; jobs start their own ranks")
        grace = self.config.get("grace_seconds", INTERRUPTION.grace)
        INTERRUPTION.give(grace)
        INTERRUPTION.give(grace + 10)  # the jobs have to be gone first
        sweep_dir = Path(self.config.hydra.sweep.dir).expanduser().resolve()
        jobs = [self._job(sweep_dir, initial_job_idx + k, list(words)) for k, words in enumerate(job_overrides)]
        _check_same_sweep(sweep_dir, jobs)
        backend = get_class(self.backend)(grace=grace, **self.settings)
        try:
            _run(backend, jobs)
        finally:
            write_table(sweep_dir)
            print_table(sweep_dir, {job.number for job in jobs})
            if any(job.status not in (*FINISHED, "failed") for job in jobs):
                log.warning("not all jobs are done: the same command with hydra.sweep.dir=%s goes on", sweep_dir)
        return [_result(job, jobs, sweep_dir) for job in jobs]

    def _job(self, sweep_dir: Path, number: int, overrides: list[str]) -> Job:
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        choices, trainer = cfg.hydra.runtime.choices, cfg.trainer
        run_dir = sweep_dir / f"{number}-{choices.model}-{choices.dataset}"
        own = [word for word in overrides if not word.startswith(OF_THE_DRIVER)]
        return Job(number, own, run_dir, cfg.optimized_metric, trainer.devices, trainer.num_nodes)


def _run(backend: Any, jobs: list[Job]) -> None:  # noqa: ANN401 (one of three classes)
    """Run what is not finished, and say how each job ended."""
    for job in jobs:
        job.is_finished()
        job.record()
    todo = [job for job in jobs if job.status not in FINISHED]
    log.info("%d jobs in %s%s", len(jobs), jobs[0].run_dir.parent, f", {len(todo)} to do" * (len(todo) < len(jobs)))
    names = dict(zip((job.number for job in jobs), differing([job.overrides for job in jobs]), strict=True))
    with closing(backend.run(todo)) as ended:
        for job, code, why in ended:
            job.settle(code, why)
            log.info("job %d (%s): %s %s", job.number, names[job.number], job.status, job.detail)


def _check_same_sweep(sweep_dir: Path, jobs: list[Job]) -> None:
    """Raise ConfigError where a job of an earlier start had the same number and other overrides."""
    earlier = {known["number"]: known for known in recorded(sweep_dir)}
    for job in jobs:
        known = earlier.get(job.number)
        if known is None:
            continue
        changed = " ".join(sorted({*known["overrides"]} ^ {*job.overrides}))
        if changed:
            advice = "choose another directory, or give the same command"
            raise ConfigError(f"hydra.sweep.dir={sweep_dir}: job {job.number} was another one ({changed}); {advice}")
        job.handle = known["handle"]


def _result(job: Job, jobs: list[Job], sweep_dir: Path) -> JobReturn:
    """What the sweeper gets: the optimised metric, or for a failed or stopped job an error to raise."""
    if job.status in FINISHED:
        result = JobReturn(status=JobStatus.COMPLETED, _return_value=job.metric)
    else:
        bad = sum(other.status not in FINISHED for other in jobs)
        text = f"job {job.number} {job.status}: {job.detail} ({bad} of {len(jobs)} jobs not done)"
        error = JobFailed(f"{text}; see {sweep_dir / 'jobs.csv'}", job.code)
        result = _NotDone(status=JobStatus.FAILED, _return_value=error)
    result.overrides, result.working_dir, result.task_name = job.overrides, str(job.run_dir), "train"
    return result


class _NotDone(JobReturn):
    """Raises its error without the line that Hydra's own prints: the table has said it."""

    @property
    def return_value(self) -> float:
        """There is none."""
        raise self._return_value
