"""The launcher of multiruns: each job a process of the plain command line, on whatever backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from src.config.output import is_first, quiet_logging
from src.config.settings import check_settings
from src.errors import ConfigError, require
from src.launch.job import FINISHED, Job, recorded
from src.report.jobs import print_jobs, write_jobs
from src.training.interruption import INTERRUPTION

log = logging.getLogger(__name__)
OF_THE_DRIVER = ("launcher=", "resume=")  # overrides that are nothing to a job


class JobLauncher(Launcher):
    """Runs the jobs that a sweeper asks for and says what became of each: a table, ``jobs.csv``, an exit code.

    backend: class of the backend, which takes ``settings`` and has ``run(jobs)``: an iterator of (job, exit code, why)
    as jobs end, which stops what is running when it is closed, within ``leaving`` seconds; ``open()``, which raises
    ConfigError where nothing can be run, as ``check(job)`` does for one job; ``at_once(devices)`` of a study. Finished
    jobs are not done again, others go on from their checkpoint. A failed job stops no other one.
    """

    def __init__(self, backend: str, **settings: Any) -> None:  # noqa: ANN401 (checked by the backend)
        self.kind, self.settings = backend, settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by the sweeper."""
        self.context, self.config = hydra_context, config
        self.sweep_dir = Path(config.hydra.sweep.dir).expanduser().resolve()
        typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        self.fixed = {
            override.get_key_element() for override in typed if not override.is_sweep_override()
        }

    @cached_property
    def backend(self) -> Any:  # noqa: ANN401 (one of three classes)
        """The backend, made of settings that fit. Raises ConfigError where they do not, or something is missing."""
        kind = get_class(self.kind)
        check_settings(OmegaConf.create({"launcher": self.settings}), launcher=kind)
        return kind(grace=self.config.get("grace_seconds", INTERRUPTION.grace), **self.settings)

    @property
    def at_once(self) -> int:
        """How many jobs of a study run at a time."""
        return self.backend.at_once(self.config.trainer.devices)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """What Hydra's own sweeper calls: run these jobs. Raises ConfigError where there are none."""
        if not job_overrides:
            raise ConfigError(
                "--multirun: the sweep is empty; give at least one value for each setting that is swept"
            )
        at_once = self.config.hydra.sweeper.get("max_batch_size")
        allowed = "must be null: a failure would end the sweep with its batch; launcher.jobs is how many run at a time"
        require(at_once is None, "hydra.sweeper.max_batch_size", at_once, allowed)
        jobs = [self.job(initial_job_idx + k, words) for k, words in enumerate(job_overrides)]
        quiet_logging()
        log.info("%d jobs, %d to do", len(jobs), sum(not job.is_finished() for job in jobs))
        self.run(iter(jobs))
        return [_result(job, jobs) for job in jobs]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """The job of these overrides. Raises ConfigError where another job had this number in the sweep directory."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        choices, trainer = cfg.hydra.runtime.choices, cfg.trainer
        run_dir = self.sweep_dir / f"{number}-{choices.model}-{choices.dataset}"
        own = [word for word in overrides if not word.startswith(OF_THE_DRIVER)]
        name = " ".join(
            word for word in own if word.partition("=")[0] not in {"sweep.trial", *self.fixed}
        )
        job = Job(
            number, own, run_dir, cfg.optimized_metric, trainer.devices, trainer.num_nodes, name
        )
        for known in recorded(self.sweep_dir, number):
            changed = " ".join(sorted({*known["overrides"]} ^ {*own}))
            if changed:
                where = (
                    f"hydra.sweep.dir={self.sweep_dir}: job {number} was another one ({changed})"
                )
                raise ConfigError(f"{where}; choose another directory, or give the same command")
            job.handle, job.starts = known["handle"], known.get("starts", 0)
        return job

    def run(
        self, jobs: Iterator[Job | None], ended: Callable[[Job], None] = lambda job: None
    ) -> None:
        """Run jobs as they come (see ``available``), tell ``ended`` of each, and show the table of the directory."""
        setup_globals()
        quiet_logging()
        if not is_first() or "LOCAL_RANK" in os.environ:
            raise ConfigError(
                "--multirun under torchrun or srun: would run once per rank; jobs start their own ranks"
            )
        INTERRUPTION.give(self.backend.grace)
        INTERRUPTION.give(self.backend.leaving)  # the jobs have to be gone first
        log.info("jobs in %s", self.sweep_dir)
        seen: list[Job] = []
        try:
            with closing(self.backend.run(self._to_do(jobs, seen, ended))) as results:
                for job, code, why in results:
                    job.settle(code, why)
                    log.info(
                        "job %d (%s): %s %s",
                        job.number,
                        job.name or job.run_dir.name,
                        job.status,
                        job.detail,
                    )
                    ended(job)
        finally:
            table = self.sweep_dir / "jobs.csv"
            write_jobs(recorded(self.sweep_dir), table)
            print_jobs(recorded(self.sweep_dir), table)
            if any(job.status not in (*FINISHED, "failed") for job in seen):
                log.warning(
                    "not all jobs are done: the same command with hydra.sweep.dir=%s goes on",
                    self.sweep_dir,
                )

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
                log.info(
                    "job %d (%s): failed %s", job.number, job.name or job.run_dir.name, job.detail
                )
                ended(job)
            else:
                if not job.file("json").exists():  # or else another driver may be at it
                    job.record()
                yield job


def _result(job: Job, jobs: list[Job]) -> JobReturn:
    """What Hydra's sweeper gets: the optimised metric, or for a failed or stopped job an error to raise."""
    done = job.status in FINISHED
    kind, status = (JobReturn, JobStatus.COMPLETED) if done else (_NotDone, JobStatus.FAILED)
    result = kind(status=status, _return_value=job.metric if done else job.error(jobs))
    result.overrides, result.working_dir, result.task_name = (
        job.overrides,
        str(job.run_dir),
        "train",
    )
    return result


class _NotDone(JobReturn):
    """Raises its error without the line that Hydra's own prints: the table has said it."""

    @property
    def return_value(self) -> float:
        """There is none."""
        raise self._return_value
