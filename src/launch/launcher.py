"""The launcher of multiruns: each job a process of the plain command line, on whatever backend."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from src.config.command import composing_words
from src.config.output import quiet_logging
from src.config.rank import is_first
from src.config.settings import check_settings
from src.config.unread import check_read, check_taken
from src.config.words import name_of_choice
from src.errors import ConfigError, require
from src.launch.job import FINISHED, Job, record_of, recorded
from src.report.jobs import print_jobs, write_jobs
from src.training.interruption import INTERRUPTION

log = logging.getLogger(__name__)
OF_THE_DRIVER = ("launcher=", "resume=")  # overrides that are not passed to jobs
TRIAL = "sweep.trial"  # the number of the job again, and no choice


class Backend(Protocol):
    """Where jobs run. grace, leaving: seconds that a job, and all of them, may take to stop."""

    grace: float
    leaving: float

    def open(self) -> None:
        """Raise ConfigError where nothing can be run."""

    def check(self, job: Job) -> None:
        """Raise ConfigError where this job cannot be run."""

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Run jobs; give each with exit code and reason as it ends. Closing stops the others."""

    def at_once(self, devices: int | str) -> int:
        """How many jobs of a study run at a time."""


class JobLauncher(Launcher):
    """Runs the jobs of a sweeper; a table, ``jobs.csv`` and an exit code show how each ended.

    Finished jobs are not done again, others go on from their checkpoint. A failed job stops no
    other one.

    Arguments:
        backend: its class.
        settings: arguments of the class, which checks them.
    """

    def __init__(self, backend: str, **settings: Any) -> None:  # noqa: ANN401
        self.kind = backend
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by the sweeper. Raises ConfigError for a setting that nothing reads."""
        check_read(config, config.hydra.overrides.task)
        self.context = hydra_context
        self.config = config
        self.sweep_dir = Path(config.hydra.sweep.dir).expanduser().resolve()
        typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        self.fixed = {
            override.get_key_element() for override in typed if not override.is_sweep_override()
        }

    @cached_property
    def backend(self) -> Backend:
        """The backend. Raises ConfigError where its settings do not fit, or it is not installed."""
        kind = get_class(self.kind)
        check_taken("hydra.launcher", self.settings, list(inspect.signature(kind).parameters))
        check_settings(OmegaConf.create({"launcher": self.settings}), launcher=kind)
        return kind(grace=self.config.get("grace_seconds", INTERRUPTION.grace), **self.settings)

    @property
    def at_once(self) -> int:
        """How many jobs of a study run at a time."""
        return self.backend.at_once(self.config.trainer.devices)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs of Hydra's own sweeper. Raises ConfigError where there are none."""
        if not job_overrides:
            advice = "give at least one value for each setting that is swept"
            raise ConfigError(f"--multirun: the sweep is empty; {advice}")
        at_once = self.config.hydra.sweeper.get("max_batch_size")
        allowed = (
            "must be null: a failure would end the sweep with its batch; "
            "launcher.jobs is how many run at a time"
        )
        require(at_once is None, "hydra.sweeper.max_batch_size", at_once, allowed)
        jobs = [self.job(initial_job_idx + k, own) for k, own in enumerate(job_overrides)]
        quiet_logging()
        to_do = sum(not job.is_finished() for job in jobs)
        log.info("%d jobs, %d to do", len(jobs), to_do)
        self.run(iter(jobs))
        return [_result(job, jobs) for job in jobs]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """The job of these overrides.

        Raises ConfigError where another job had this number in the sweep directory.
        """
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        choices = cfg.hydra.runtime.choices
        raw = OmegaConf.to_container(cfg, resolve=False)
        named = [name_of_choice(choices[group], raw[group]) for group in ("model", "dataset")]
        own = [text for text in overrides if not text.startswith(OF_THE_DRIVER)]
        chosen = [text for text in own if text.partition("=")[0] not in {TRIAL, *self.fixed}]
        job = Job(
            number,
            own,
            run_dir=self.sweep_dir / "-".join((str(number), *named)),
            metric_name=cfg.optimized_metric,
            devices=cfg.trainer.devices,
            nodes=cfg.trainer.num_nodes,
            name=" ".join(chosen),
            places=composing_words(self.config.hydra),
        )
        known = record_of(self.sweep_dir, number)
        if known:
            changed = " ".join(sorted({*known["overrides"]} ^ {*own}))
            if changed:
                what = f"job {number} was another one ({changed})"
                advice = "choose another directory, or give the same command"
                raise ConfigError(f"hydra.sweep.dir={self.sweep_dir}: {what}; {advice}")
            job.handle = known["handle"]
            job.starts = known["starts"]
        return job

    def run(
        self, jobs: Iterator[Job | None], ended: Callable[[Job], None] = lambda job: None
    ) -> None:
        """Run jobs as they come (see ``available``), and show the table of the directory.

        ended: called with each job that has ended.
        """
        setup_globals()
        quiet_logging()
        if not is_first() or "LOCAL_RANK" in os.environ:
            why = "would run once per rank; jobs start their own ranks"
            raise ConfigError(f"--multirun under torchrun or srun: {why}")
        INTERRUPTION.give(self.backend.grace)
        INTERRUPTION.give(self.backend.leaving)  # the jobs have to be gone first
        log.info("jobs in %s", self.sweep_dir)
        seen: list[Job] = []
        try:
            with closing(self.backend.run(self._to_do(jobs, seen, ended))) as results:
                for job, code, why in results:
                    job.settle(code, why)
                    _log_end(job)
                    ended(job)
        finally:
            self._show(seen)

    def _show(self, seen: list[Job]) -> None:
        """Write and print the table, and what to do where not all jobs are done."""
        table = self.sweep_dir / "jobs.csv"
        known = recorded(self.sweep_dir)
        write_jobs(known, table)
        print_jobs(known, table)
        if any(job.status not in (*FINISHED, "failed") for job in seen):
            advice = f"the same command with hydra.sweep.dir={self.sweep_dir} goes on"
            log.warning("not all jobs are done: %s", advice)

    def _to_do(
        self, jobs: Iterator[Job | None], seen: list[Job], ended: Callable[[Job], None]
    ) -> Iterator[Job | None]:
        """Those of the jobs that are to be run; all are recorded, and added to ``seen``.

        One that is finished, or that the backend cannot run, has ended before it began.
        """
        opened = False
        for job in jobs:
            if job is None:
                yield None
                continue
            seen.append(job)
            if job.is_finished():
                job.record()
                ended(job)
                continue
            if not opened:
                self.backend.open()
                opened = True
            try:
                self.backend.check(job)
            except ConfigError as error:
                job.refuse(str(error))
                _log_end(job)
                ended(job)
            else:
                if not job.file("json").exists():  # or else another driver may be at it
                    job.record()
                yield job


def _log_end(job: Job) -> None:
    name = job.name or job.run_dir.name
    log.info("job %d (%s): %s %s", job.number, name, job.status, job.detail)


def _result(job: Job, jobs: list[Job]) -> JobReturn:
    """What Hydra's sweeper gets: the optimised metric, or an error to raise."""
    if job.status in FINISHED:
        result = JobReturn(status=JobStatus.COMPLETED, _return_value=job.metric)
    else:
        result = _NotDone(status=JobStatus.FAILED, _return_value=job.error(jobs))
    result.overrides = job.overrides
    result.working_dir = str(job.run_dir)
    result.task_name = "train"
    return result


class _NotDone(JobReturn):
    """Raises its error without the line that Hydra's own prints: the table shows it."""

    @property
    def return_value(self) -> float:
        """There is none."""
        raise self._return_value
