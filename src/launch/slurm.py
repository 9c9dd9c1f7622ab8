"""Jobs on a Slurm cluster: one job array, watched through squeue alone."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from src.errors import ConfigError, require
from src.launch import process
from src.launch.job import Job, available, check_jobs, recorded
from src.launch.slurm_script import write_array
from src.training.interruption import INTERRUPTION

log = logging.getLogger(__name__)

ALIVE = {
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
}
ALIVE |= {"RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
AGAIN = {
    "PREEMPTED",
    "NODE_FAIL",
    "BOOT_FAIL",
}  # Slurm's doing, where it does not requeue by itself
USUAL = {
    "None",
    "Priority",
    "Resources",
    "BeginTime",
    "JobArrayTaskLimit",
    "Prolog",
}  # reasons to wait
GIVE_UP = 60  # looks at which sbatch has refused what is left to do, and nothing was running
PATIENCE = (
    3  # looks at a job that is over and has left no exit code; submissions without a new checkpoint
)
KILL_WAIT = 45  # seconds that Slurm gives a cancelled job, and some more


@dataclass
class Slurm:
    """What ``sbatch`` is told; nodes and tasks per node are the job's ``trainer.num_nodes`` and ``trainer.devices``.

    minutes: time limit of a job between two requeues. lead: seconds before it at which the job is told to keep a
    checkpoint and go back into the queue. jobs: how many run at a time, null is no limit. poll: seconds.
    gpus: a GPU per task. options: further words for sbatch; setup: lines of shell before the job.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    lead: int = 120
    jobs: int | None = None
    cpus: int = 1
    gpus: bool = False
    options: Sequence[str] = ()
    setup: Sequence[str] = ()
    poll: float = 5
    grace: float = 10
    states: dict[str, tuple[str, str]] = field(
        default_factory=dict, init=False
    )  # handle -> state, reason
    reasons: dict[int, str] = field(
        default_factory=dict, init=False
    )  # why a job waits, as was told
    kept: dict[int, str] = field(
        default_factory=dict, init=False
    )  # the checkpoint of a job that was lost
    looks: Counter[int] = field(
        default_factory=Counter, init=False
    )  # at a job that is over and has left nothing
    losses: Counter[int] = field(
        default_factory=Counter, init=False
    )  # of a job, since its last new checkpoint
    accepted: bool = field(default=False, init=False)  # whether Slurm has taken any job
    refusal: str = field(default="", init=False)  # the last one
    refusals: int = field(default=0, init=False)  # in a row, while nothing was running

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "lead"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 1,
                f"launcher.{name}",
                value,
                "must be an integer >= 1",
            )
        check_jobs(self.jobs)
        require(self.poll > 0, "launcher.poll", self.poll, "must be > 0 seconds")
        allowed = f"must be less than launcher.minutes={self.minutes}, in seconds"
        require(self.lead < 60 * self.minutes, "launcher.lead", self.lead, allowed)

    @property
    def leaving(self) -> float:
        """Seconds that it may take to cancel everything."""
        return self.grace + KILL_WAIT + 10

    def at_once(self, devices: int | str) -> int:
        """``jobs``, or one."""
        return self.jobs or 1

    def open(self) -> None:
        """Raise ConfigError where Slurm is out of reach."""
        if shutil.which("sbatch") is None:
            why = "there is no sbatch here; start this on a login node of the cluster"
            raise ConfigError(
                f"launcher=slurm: {why} (to be one on Debian: apt-get install slurm-client)"
            )

    def check(self, job: Job) -> None:
        """Raise ConfigError for a job whose tasks cannot be counted."""
        counted = isinstance(job.devices, int)
        require(
            counted,
            "trainer.devices",
            job.devices,
            "must be a number with launcher=slurm: the tasks per node",
        )

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Submit the jobs that are not there from an earlier start; yield each as it ends. Leaving cancels the rest."""
        waiting = available(jobs)
        running: dict[int, Job] = {}
        try:
            while waiting or running:
                answered = self._look()
                for job in list(running.values()) if answered else ():
                    end = self._end(job)
                    if end:
                        del running[job.number]
                        yield job, *end
                waiting += available(jobs)
                lost = [job for job in running.values() if self._state(job)[0] in AGAIN]
                if answered and (waiting or lost):
                    waiting = self._submit([*waiting, *lost], running)
                self.refusals = self.refusals + 1 if waiting and not running else 0
                while waiting and self.refusals > GIVE_UP:
                    yield waiting.pop(), ConfigError.exit_code, self.refusal
                time.sleep(self.poll)
        finally:
            self._cancel(list(running.values()))

    def _submit(self, jobs: Sequence[Job], running: dict[int, Job]) -> list[Job]:
        """Hand jobs over: one array for all that need the same nodes and tasks. Returns those that Slurm does not take.

        One driver at a time: what another has handed over meanwhile is followed. The first refusal of all is an error.
        """
        alike = defaultdict(list)
        folder = jobs[0].file("sh").parent
        folder.mkdir(parents=True, exist_ok=True)
        with INTERRUPTION.deferred(), FileLock(folder / ".submit.lock"):
            for job in jobs:
                for known in recorded(folder.parent, job.number):
                    job.handle, job.starts = known["handle"], known.get("starts", 0)
            if not self._look():
                return [job for job in jobs if job.number not in running]
            for job in jobs:
                if self._state(job)[0] in ALIVE or job.is_finished():  # see _end
                    self.accepted = True
                    running[job.number] = job
                else:
                    alike[job.nodes, job.devices].append(job)
            return [job for group in alike.values() for job in self._hand_over(group, running)]

    def _hand_over(self, group: list[Job], running: dict[int, Job]) -> list[Job]:
        """Submit one array; returns its jobs where Slurm does not take it."""
        for job in group:
            job.hear()
        number = self._sbatch(write_array(group, self.setup), group)
        if number is None:
            return [running.pop(job.number, job) for job in group]
        for element, job in enumerate(group):
            job.handle = f"{number}_{element}"
            self.states[job.handle] = ("PENDING", "None")
            running[job.number] = job
        for job in group:  # writing may fail, and what is running has to be known by then
            job.begin("waiting")
        return []

    def _sbatch(self, script: Path, jobs: Sequence[Job]) -> str | None:
        """The number of the new array, or None where Slurm does not take it now. Raises ConfigError at the first."""
        nodes, tasks, at_once = jobs[0].nodes, jobs[0].devices, f"%{self.jobs}" if self.jobs else ""
        words = ["sbatch", "--parsable", "--requeue", "--open-mode=append", "--job-name=genbench"]
        words += [
            f"--array=0-{len(jobs) - 1}{at_once}",
            f"--nodes={nodes}",
            f"--ntasks-per-node={tasks}",
        ]
        words += [
            f"--cpus-per-task={self.cpus}",
            f"--time={self.minutes}",
            f"--signal=USR1@{self.lead}",
        ]
        words += [f"--output={script.with_suffix('')}-%a.log"]
        words += [f"--gpus-per-node={tasks}"] if self.gpus else []
        words += [
            f"--{name}={value}"
            for name in ("partition", "account")
            if (value := getattr(self, name))
        ]
        done = _slurm([*words, *self.options, str(script)])
        if done.returncode == 0:
            self.accepted, self.refusal = True, ""
            number = done.stdout.split(";")[0].strip()
            log.info("Slurm job array %s: %d elements", number, len(jobs))
            return number
        why = f"launcher=slurm: sbatch refuses: {' '.join(done.stderr.split())}"
        if not self.accepted:
            raise ConfigError(why)
        if why != self.refusal:
            log.warning("%s; %d jobs wait until it takes them", why, len(jobs))
        self.refusal = why
        return None

    def _look(self) -> bool:
        """Ask for the states of all of the user's jobs; where Slurm does not answer, those of before stand."""
        done = _slurm(
            ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T %r"]
        )
        if done.returncode:
            log.warning("squeue does not answer: %s", " ".join(done.stderr.split()))
            return False
        found = (line.split(maxsplit=2) for line in done.stdout.splitlines())
        self.states = {handle: (state, *reason, "None")[:2] for handle, state, *reason in found}
        return True

    def _state(self, job: Job) -> tuple[str, str]:
        """What Slurm said of a job at the last look, and why; "" where it said nothing."""
        return self.states.get(job.handle, ("", ""))

    def _end(self, job: Job) -> tuple[int, str] | None:
        """Exit code and reason of a job that has ended, None where it has not, or is to be submitted again."""
        state, reason = self._state(job)
        if state in ALIVE:
            self._tell(job, state, reason)
            return None
        if job.is_finished():
            return 0, ""
        if state in AGAIN:
            return (
                None
                if self._gets_on(job)
                else (1, f"Slurm says {state}, for the third time without a checkpoint")
            )
        if job.file("exit").exists():
            return int(job.file("exit").read_text()), ""
        if state == "CANCELLED":
            return 143, "cancelled at the cluster"
        if state not in ("", "COMPLETED"):
            return 1, f"Slurm says {state}"
        self.looks[job.number] += 1
        if self.looks[job.number] < PATIENCE:
            return None
        waited = (
            job.status == "waiting"
        )  # an element that is cancelled before it begins leaves nothing
        gone = (143, "cancelled at the cluster" if waited else "Slurm no longer knows it")
        return (1, "Slurm says COMPLETED, without an exit code") if state else gone

    def _tell(self, job: Job, state: str, reason: str) -> None:
        """Take note of whether a job runs, and of what it waits for."""
        status = "waiting" if state == "PENDING" else "running"
        if job.status != status:
            job.status = status
            job.record()
        if status == "waiting" and reason not in (*USUAL, self.reasons.get(job.number)):
            self.reasons[job.number] = reason
            log.info("job %d waits: %s", job.number, reason)

    def _gets_on(self, job: Job) -> bool:
        """Whether a job that was lost has a checkpoint that it did not have before, or may be tried without."""
        latest = job.run_dir / "checkpoints" / "latest.json"
        kept = latest.read_text() if latest.exists() else ""
        if kept != self.kept.get(job.number):
            self.kept[job.number], self.losses[job.number] = kept, 0
        self.losses[job.number] += 1
        return self.losses[job.number] < PATIENCE

    def _cancel(self, jobs: list[Job]) -> None:
        """Cancel what was handed over and wait until it is gone: each job keeps a checkpoint first."""
        begin, there, asked, left = time.monotonic(), ALIVE, False, jobs
        while left and time.monotonic() < begin + self.grace + KILL_WAIT:
            asked = asked or _slurm(["scancel", *(job.handle for job in jobs)]).returncode == 0
            if time.monotonic() > begin + self.grace + 2:
                there = ALIVE - {"COMPLETING"}  # what the site does after a job is not waited for
            if self._look():
                left = [job for job in jobs if self._state(job)[0] in there]
            time.sleep(min(self.poll, 1) if left else 0)
        if left:
            log.warning(
                "Slurm has not ended %s: scancel them", " ".join(job.handle for job in left)
            )
        for job in jobs:
            if job not in left:
                job.settle(143)


def _slurm(words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of Slurm, without the variables of a job that the driver itself may be."""
    settings = {"capture_output": True, "text": True, "check": False, "env": process.environment()}
    return subprocess.run(
        words, start_new_session=True, **settings
    )  # Ctrl-C is the driver's business
