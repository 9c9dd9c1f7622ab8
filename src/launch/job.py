"""One job of a multirun: its command, its files, and what became of it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from src.errors import ConfigError, ProjectError, WorkerLostError, require
from src.files import write_json

COMMAND = (sys.executable, "-m", "src.train")
FOLDER = "jobs"  # of the sweep directory: <number>.log, what a job said, and <number>.json, what the table knows of it
PRUNED = (
    "pruned.json"  # in the run directory of a pruned job: the step, and what was measured there
)
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
FINISHED = ("done", "pruned")
OWN_CODES = range(2, 9)  # of the classes in src/errors.py


class JobFailed(ProjectError):
    """A job has ended with an error; the exit code is its own, or 8 where it was killed or met a defect."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.exit_code = code if code in OWN_CODES else WorkerLostError.exit_code


@dataclass
class Job:
    """number: in the sweep. overrides: as Hydra composes them. metric_name: what a sweep optimises.

    name: those of the overrides that were not typed for all jobs, but chosen by the sweep for this one.
    devices (a number or auto) on each of ``nodes`` machines are what the job's trainer asks for. status: waiting,
    running, done, pruned, stopped or failed; detail: one line about the last two. handle: the job's name at a cluster,
    starts: how often it was handed over to one.
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
    said: int = 0  # bytes of the log that are of earlier starts

    @property
    def words(self) -> list[str]:
        """The command of the job; given again, it goes on where the job was."""
        return [*COMMAND, *self.overrides, f"hydra.run.dir={self.run_dir}", "resume=auto"]

    def file(self, suffix: str) -> Path:
        """``jobs/<number>.<suffix>`` beside the run directories."""
        return self.run_dir.parent / FOLDER / f"{self.number}.{suffix}"

    def is_finished(self) -> bool:
        """Whether there is nothing left to do; then ``status`` and ``metric`` say how it ended."""
        metrics = _read(self.run_dir / "metrics.json")
        pruned = _read(self.run_dir / PRUNED)
        if metrics is None and pruned is None:
            return False
        self.status, self.detail = ("done", "") if pruned is None else ("pruned", "")
        self.metric = (metrics or pruned).get(self.metric_name)
        return True

    def hear(self) -> None:
        """What the log says from here on is of the next start."""
        self.said = self.file("log").stat().st_size if self.file("log").exists() else 0

    def begin(self, status: str = "running") -> None:
        """Take note of a start."""
        self.status, self.starts = status, self.starts + 1
        self.record()

    def settle(self, code: int, why: str = "") -> None:
        """Take note of how the process ended. code: exit status, minus the signal of one that was killed."""
        self.code = code
        if (
            code in (0, *STOPPED) and self.is_finished()
        ):  # it may have been stopped when all was done
            pass
        elif code in STOPPED:
            self.status, self.detail = (
                "stopped",
                why or "the same command goes on from its checkpoint",
            )
        else:
            number = code - 128 if code > 128 else -code  # as a shell tells of a signal, or Python
            killed = number in signal.valid_signals()
            how = f"killed by {signal.Signals(number).name}" if killed else f"exit code {code}"
            self.status, self.detail = "failed", f"{how}: {why or self._last_words()}"
        self.record()

    def refuse(self, why: str) -> None:
        """Take note that it cannot be run."""
        self.status, self.detail, self.code = "failed", why, ConfigError.exit_code
        self.record()

    def error(self, jobs: Sequence[Job]) -> JobFailed:
        """What to raise for this one of ``jobs``, which is not done."""
        bad = sum(job.status not in FINISHED for job in jobs)
        text = (
            f"job {self.number} {self.status}: {self.detail} ({bad} of {len(jobs)} jobs not done)"
        )
        return JobFailed(f"{text}; see {self.run_dir.parent / 'jobs.csv'}", self.code)

    def record(self) -> None:
        """Write what the table knows."""
        known = {
            "number": self.number,
            "overrides": self.overrides,
            "run_dir": str(self.run_dir),
            "code": self.code,
        }
        known |= {
            "status": self.status,
            "detail": self.detail,
            "metric": self.metric,
            "handle": self.handle,
        }
        known |= {"name": self.name, "metric_name": self.metric_name, "starts": self.starts}
        write_json(self.file("json"), known)

    def _last_words(self) -> str:
        """The error line of the log, or its last line."""
        try:
            with open(self.file("log"), "rb") as log:
                log.seek(max(self.said, log.seek(0, 2) - 65536))
                lines = [
                    line.strip()
                    for line in log.read().decode(errors="replace").splitlines()
                    if line.strip()
                ]
        except OSError:
            lines = []
        said = (
            [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            or lines
            or ["no word"]
        )
        return said[-1][:300]


def check_jobs(jobs: int | None) -> None:
    """Raise ConfigError unless ``launcher.jobs`` is a number of jobs, or null."""
    whole = isinstance(jobs, int) and jobs >= 1
    require(whole or jobs is None, "launcher.jobs", jobs, "must be an integer >= 1, or null")


def available(jobs: Iterator[Job | None]) -> list[Job]:
    """The jobs that may begin now: those before the next None, which says that one has to end before there are more."""
    return list(takewhile(lambda job: job is not None, jobs))


def recorded(sweep_dir: Path, number: int | str = "*") -> list[dict]:
    """What is known of all jobs of a sweep directory, or of one, whoever has run them; by number."""
    found = [_read(path) for path in (sweep_dir / FOLDER).glob(f"{number}.json")]
    return sorted((known for known in found if known), key=lambda known: known["number"])


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
