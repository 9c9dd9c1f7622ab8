"""One job of a multirun: its command, its files, and what became of it."""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from src.errors import ConfigError, DataError, ProjectError, WorkerLostError, require
from src.files import write_json
from src.foreign import NUMBER, TEXT, check_texts, checked, naming, read_json
from src.rundir.numbers import Numbers, read_numbers

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "src.train")
FOLDER = "jobs"  # of the sweep directory: <number>.log of each job, and <number>.json for the table
PRUNED = "pruned.json"  # in the run directory of a pruned job: the step, and the value there
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
FINISHED = ("done", "pruned")
OWN_CODES = range(2, 9)  # of the classes in src/errors.py
RECORD = {  # what jobs/<number>.json holds
    "number": (int,),
    "overrides": (list,),
    "code": (int, type(None)),
    "status": (str,),
    "detail": (str,),
    "metric": NUMBER,
    "metric_name": TEXT,
    "handle": TEXT,
    "name": (str,),
    "starts": (int,),
    "run_dir": (str,),
}
TAIL = 65536  # bytes of the log in which the last line is looked for


class JobFailed(ProjectError):
    """A job has ended with an error.

    The exit code is the job's own, or 8 where it was killed or met a defect.
    """

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.exit_code = code if code in OWN_CODES else WorkerLostError.exit_code


@dataclass
class Job:
    """One run of a sweep.

    Arguments:
        number: in the sweep.
        overrides: as Hydra composes them.
        run_dir: where the run lies.
        metric_name: what a sweep optimises.
        devices: a number or ``auto``: what the job's trainer uses on each machine.
        nodes: the number of machines.
        name: the overrides that the sweep has chosen for this job alone.
        status: waiting, running, done, pruned, stopped or failed.
        detail: one line about the last two.
        metric: value of ``metric_name``.
        code: exit status, minus the signal of a process that was killed.
        handle: the job's name at a cluster.
        starts: how often it was handed over to one.
        log_start: bytes of the log that are of earlier starts.
        places: words that say where the composition looks for its files.
    """

    number: int
    overrides: list[str]
    run_dir: Path
    metric_name: str
    devices: int | str = 1
    nodes: int = 1
    name: str = ""
    status: str = "waiting"
    detail: str = ""
    metric: float | None = None
    code: int | None = None
    handle: str | None = None
    starts: int = 0
    log_start: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """The command line of the job; given again, it resumes the run."""
        restart = (f"hydra.run.dir={self.run_dir}", "resume=auto")
        return [*COMMAND, *self.places, *self.overrides, *restart]

    def file(self, suffix: str) -> Path:
        """``jobs/<number>.<suffix>`` beside the run directories."""
        return self.run_dir.parent / FOLDER / f"{self.number}.{suffix}"

    def is_finished(self) -> bool:
        """Whether there is nothing left to do; then ``status`` and ``metric`` are set."""
        metrics = _numbers(self.run_dir / "metrics.json")
        pruned = _numbers(self.run_dir / PRUNED)
        if metrics is None and pruned is None:
            return False
        self.status = "done" if pruned is None else "pruned"
        self.detail = ""
        metric = (pruned if metrics is None else metrics).get(self.metric_name)
        self.metric = metric if metric is not None and math.isfinite(metric) else None
        return True

    def mark_log(self) -> None:
        """Remember the position in the log: what follows belongs to the next start."""
        log = self.file("log")
        self.log_start = log.stat().st_size if log.exists() else 0

    def begin(self, status: str = "running") -> None:
        """Record a start."""
        self.status = status
        self.starts += 1
        self.record()

    def settle(self, code: int, why: str = "") -> None:
        """Record how the process ended.

        Arguments:
            code: exit status, minus the signal of one that was killed.
            why: what a cluster reports.
        """
        self.code = code
        # it may have been stopped when all was done
        finished = code in (0, *STOPPED) and self.is_finished()
        if not finished and code in STOPPED:
            self.status = "stopped"
            self.detail = why or "the same command goes on from its checkpoint"
        elif not finished:
            self.status = "failed"
            self.detail = f"{_how(code)}: {why or self._last_line()}"
        self.record()

    def refuse(self, why: str) -> None:
        """Record that it cannot be run."""
        self.status = "failed"
        self.detail = why
        self.code = ConfigError.exit_code
        self.record()

    def error(self, jobs: Sequence[Job]) -> JobFailed:
        """What to raise for this one of ``jobs``, which is not done."""
        bad = sum(job.status not in FINISHED for job in jobs)
        left = f"{bad} of {len(jobs)} jobs not done"
        where = self.run_dir.parent / "jobs.csv"
        text = f"job {self.number} {self.status}: {self.detail} ({left}); see {where}"
        return JobFailed(text, self.code)

    def record(self) -> None:
        """Write what the table shows, and what another driver needs."""
        names = ("number", "overrides", "code", "status", "detail", "metric", "handle", "name")
        known = {name: getattr(self, name) for name in (*names, "metric_name", "starts")}
        write_json(self.file("json"), known | {"run_dir": str(self.run_dir)})

    def _last_line(self) -> str:
        """The error line of the log, or its last line."""
        try:
            with open(self.file("log"), "rb") as log:
                log.seek(max(self.log_start, log.seek(0, 2) - TAIL))
                text = log.read().decode(errors="replace")
        except OSError:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        found = errors or lines or ["no word"]
        return found[-1][:300]


def _how(code: int) -> str:
    """How a process failed: by which signal, as a shell reports one (128 + n) or Python (-n)."""
    number = code - 128 if code > 128 else -code
    if number in signal.valid_signals():
        return f"killed by {signal.Signals(number).name}"
    return f"exit code {code}"


def check_jobs(jobs: int | None) -> None:
    """Raise ConfigError unless ``launcher.jobs`` is a number of jobs, or null."""
    whole = isinstance(jobs, int) and jobs >= 1
    require(whole or jobs is None, "launcher.jobs", jobs, "must be an integer >= 1, or null")


def available(jobs: Iterator[Job | None]) -> list[Job]:
    """The jobs that may begin now: those before the next None.

    None stands for: one has to end before there are more.
    """
    return list(takewhile(lambda job: job is not None, jobs))


def recorded(sweep_dir: Path) -> list[dict[str, Any]]:
    """What is recorded of all jobs of a sweep directory, by number; the damaged with a warning."""
    found = []
    for path in (sweep_dir / FOLDER).glob("*.json"):
        try:
            found.append(_record(path))
        except FileNotFoundError:
            continue
        except ProjectError as error:
            log.warning("left out of the table: %s", error)
    return sorted(found, key=lambda known: known["number"])


def record_of(sweep_dir: Path, number: int) -> dict[str, Any] | None:
    """What is recorded of one job; None where nothing is. Raises DataError, StorageError."""
    try:
        return _record(sweep_dir / FOLDER / f"{number}.json")
    except FileNotFoundError:
        return None
    except DataError as error:
        raise DataError(f"{error}; delete it, and the job begins anew") from error


def _record(path: Path) -> dict[str, Any]:
    with naming(path):
        known = checked(read_json(path), RECORD, {"name": "", "starts": 0})
        check_texts(known["overrides"], "overrides")
        if known["metric"] is not None and not math.isfinite(known["metric"]):
            raise ValueError("the metric is not finite")
        return known


def _numbers(path: Path) -> Numbers | None:
    """Those that a job has left; None where it has left none that can be read."""
    try:
        return read_numbers(path)
    except (FileNotFoundError, ProjectError):
        return None
