"""Jobs on a Slurm cluster: one job array, watched through squeue alone."""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.errors import ConfigError, require
from src.launch.job import Job, available, check_jobs, record_of
from src.launch.slurm_commands import Cluster
from src.launch.slurm_script import write_array
from src.launch.slurm_submission import ALIVE, LOST, Submission
from src.rundir.lock import brief_lock
from src.training.interruption import INTERRUPTION

log = logging.getLogger(__name__)

GIVE_UP = 60  # polls during which sbatch has refused what is left to do, and nothing was running
KILL_WAIT = 45  # seconds that Slurm gives a cancelled job, and some more


@dataclass
class Slurm:
    """What ``sbatch`` gets, and how its jobs are followed.

    Nodes and tasks per node are the job's ``trainer.num_nodes`` and ``trainer.devices``.

    Arguments:
        partition: as in ``sbatch``; None for the cluster's own.
        account: likewise.
        minutes: time limit of a job between two requeues.
        lead: seconds before it at which the job keeps a checkpoint and goes back into the queue.
        jobs: how many run at a time; None is no limit.
        cpus: of each task.
        gpus: whether each task gets a GPU.
        options: further options of ``sbatch``.
        setup: lines of shell before the job.
        poll: seconds between two calls of ``squeue``.
        grace: seconds that a job has to stop.
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
    cluster: Cluster = field(default_factory=Cluster, init=False)

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "lead"):
            value = getattr(self, name)
            whole = isinstance(value, int) and value >= 1
            require(whole, f"launcher.{name}", value, "must be an integer >= 1")
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
            advice = "to be one on Debian: apt-get install slurm-client"
            raise ConfigError(f"launcher=slurm: {why} ({advice})")

    def check(self, job: Job) -> None:
        """Raise ConfigError for a job whose tasks cannot be counted."""
        counted = isinstance(job.devices, int)
        allowed = "must be a number with launcher=slurm: the tasks per node"
        require(counted, "trainer.devices", job.devices, allowed)

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Submit the jobs that are not there from an earlier start; yield each as it ends.

        Leaving the loop cancels the rest.
        """
        waiting = _available(jobs)
        running: dict[int, Submission] = {}
        refusals = 0  # in a row, while nothing was running
        try:
            while waiting or running:
                answered = self.cluster.look()
                if answered:
                    yield from self._ended(running)
                waiting += _available(jobs)
                lost = [one for one in running.values() if self._state(one) in LOST]
                if answered and (waiting or lost):
                    waiting = self._submit([*waiting, *lost], running)
                if waiting and not running:
                    refusals += 1
                else:
                    refusals = 0
                while waiting and refusals > GIVE_UP:
                    yield waiting.pop().job, ConfigError.exit_code, self.cluster.refusal
                time.sleep(self.poll)
        finally:
            self._cancel(list(running.values()))

    def _ended(self, running: dict[int, Submission]) -> Iterator[tuple[Job, int, str]]:
        """Take the jobs that have ended out of ``running``, and yield them."""
        for submission in list(running.values()):
            verdict = submission.verdict(self.cluster.state(submission.handle))
            if verdict is not None:
                del running[submission.number]
                yield submission.job, *verdict

    def _submit(
        self, submissions: Sequence[Submission], running: dict[int, Submission]
    ) -> list[Submission]:
        """Hand jobs over: one array for all that need the same nodes and tasks.

        Returns those that Slurm does not take; the first refusal of all is an error. One driver at
        a time: what another has handed over meanwhile is followed.
        """
        folder = submissions[0].job.file("sh").parent
        folder.mkdir(parents=True, exist_ok=True)
        alike = defaultdict(list)
        with INTERRUPTION.deferred(), brief_lock(folder / ".submit.lock"):
            for submission in submissions:
                known = record_of(folder.parent, submission.number)
                if known:
                    submission.job.handle = known["handle"]
                    submission.job.starts = known["starts"]
            if not self.cluster.look():
                return [one for one in submissions if one.number not in running]
            for submission in submissions:
                job = submission.job
                # one that is finished ends at the next look
                if self._state(submission) in ALIVE or job.is_finished():
                    self.cluster.accepted = True
                    running[job.number] = submission
                else:
                    alike[job.nodes, job.devices].append(submission)
            refused = []
            for group in alike.values():
                refused += self._hand_over(group, running)
            return refused

    def _hand_over(
        self, group: list[Submission], running: dict[int, Submission]
    ) -> list[Submission]:
        """Submit one array; returns its jobs where Slurm does not take it."""
        jobs = [submission.job for submission in group]
        for job in jobs:
            job.mark_log()
        options = self._options(jobs, write_array(jobs, self.setup))
        handles = self.cluster.submit(options, len(jobs))
        if handles is None:
            for job in jobs:
                running.pop(job.number, None)
            return group
        for submission, handle in zip(group, handles, strict=True):
            submission.job.handle = handle
            running[submission.number] = submission
        for job in jobs:  # writing may fail, and what is running has to be known by then
            job.begin("waiting")
        return []

    def _options(self, jobs: Sequence[Job], script: Path) -> list[str]:
        """Options of ``sbatch``, and the script, for one array of jobs."""
        tasks = jobs[0].devices
        at_once = f"%{self.jobs}" if self.jobs else ""
        options = ["--parsable", "--requeue", "--open-mode=append", "--job-name=genbench"]
        options.append(f"--array=0-{len(jobs) - 1}{at_once}")
        options += [f"--nodes={jobs[0].nodes}", f"--ntasks-per-node={tasks}"]
        options += [f"--cpus-per-task={self.cpus}", f"--time={self.minutes}"]
        options.append(f"--signal=USR1@{self.lead}")
        options.append(f"--output={script.with_suffix('')}-%a.log")
        if self.gpus:
            options.append(f"--gpus-per-node={tasks}")
        for name in ("partition", "account"):
            value = getattr(self, name)
            if value:
                options.append(f"--{name}={value}")
        return [*options, *self.options, str(script)]

    def _state(self, submission: Submission) -> str:
        return self.cluster.state(submission.handle).name

    def _cancel(self, submissions: list[Submission]) -> None:
        """Cancel what was handed over and wait until it is gone: each job keeps a checkpoint."""
        handles = [submission.handle for submission in submissions]
        begin = time.monotonic()
        there = ALIVE
        cancelled = False
        left = submissions
        while left and time.monotonic() < begin + self.grace + KILL_WAIT:
            cancelled = cancelled or self.cluster.cancel(handles)
            if time.monotonic() > begin + self.grace + 2:
                there = ALIVE - {"COMPLETING"}  # what the site does after a job is not waited for
            if self.cluster.look():
                left = [one for one in submissions if self._state(one) in there]
            if left:
                time.sleep(min(self.poll, 1))
        if left:
            names = " ".join(one.handle for one in left)
            log.warning("Slurm has not ended %s: scancel them", names)
        for submission in submissions:
            if submission not in left:
                submission.job.settle(143)


def _available(jobs: Iterator[Job | None]) -> list[Submission]:
    return [Submission(job) for job in available(jobs)]
