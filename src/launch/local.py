"""Jobs on this machine: so many at a time, each with GPUs and CPU cores of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from src.config.threads import CORES, usable_cores
from src.errors import require
from src.launch import process
from src.launch.job import Job, available, check_jobs

POLL = 0.1  # seconds


class Running(NamedTuple):
    """A job that runs: its process, and the variables of its slot."""

    job: Job
    child: subprocess.Popen
    slot: dict[str, str]


@dataclass
class Local:
    """Jobs of this machine. Raises ConfigError for less than one at a time.

    Arguments:
        jobs: how many at a time; None is as many as the GPUs serve, one without GPUs.
        grace: seconds that a job has to stop.
    """

    jobs: int | None = None
    grace: float = 10
    share: int | None = field(default=None, init=False)  # GPUs of a job, when they are dealt out

    def __post_init__(self) -> None:
        check_jobs(self.jobs)

    @property
    def leaving(self) -> float:
        """Seconds that it may take to stop everything."""
        return self.grace + 10

    def at_once(self, devices: int | str) -> int:
        """``jobs``, or as many as there are GPUs for, or one."""
        each = devices if isinstance(devices, int) else 1
        return self.jobs or max(1, len(_gpus()) // each)

    def open(self) -> None:
        """This machine is there."""

    def check(self, job: Job) -> None:
        """Raise ConfigError for a job whose devices are named, or on several machines."""
        require(job.nodes == 1, "trainer.num_nodes", job.nodes, "must be 1 with launcher=local")
        counted = job.devices == "auto" or isinstance(job.devices, int)
        allowed = "must be a number or auto: the launcher chooses which"
        require(counted, "trainer.devices", job.devices, allowed)
        fits = self.share is None or job.devices == "auto" or job.devices <= self.share
        dealt = f"must be at most {self.share}, as the GPUs are dealt out"
        require(fits, "trainer.devices", job.devices, f"{dealt}; give a smaller launcher.jobs")

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Run the jobs; yield each with its exit code as it ends.

        Leaving the loop stops what is running.
        """
        waiting = available(jobs)
        free = deque(self._slots(waiting))
        running: dict[int, Running] = {}
        try:
            while waiting or running:
                if free:
                    yield from self._begin(waiting, free, running)
                yield from self._ended(free, running)
                waiting += available(jobs)
                time.sleep(POLL)
        finally:
            process.stop([one.child for one in running.values()], self.grace)
            for one in running.values():
                one.job.settle(one.child.returncode)

    def _begin(
        self, waiting: list[Job], free: deque[dict[str, str]], running: dict[int, Running]
    ) -> Iterator[tuple[Job, int, str]]:
        """Start jobs in the free slots; yield those that another driver has finished meanwhile.

        A job stays in ``waiting`` where a process of an earlier driver still runs it.
        """
        for job in list(waiting):
            if job.is_finished():
                waiting.remove(job)
                yield job, 0, ""
            elif free:
                child = process.begin(job, free[0])
                if child is not None:
                    waiting.remove(job)
                    running[job.number] = Running(job, child, free.popleft())
                    job.begin()

    def _ended(
        self, free: deque[dict[str, str]], running: dict[int, Running]
    ) -> Iterator[tuple[Job, int, str]]:
        """Free the slots of the jobs that have ended, and yield these."""
        for job, child, slot in list(running.values()):
            if child.poll() is not None:
                del running[job.number]
                free.append(slot)
                yield job, child.returncode, ""

    def _slots(self, jobs: Sequence[Job]) -> list[dict[str, str]]:
        """The environment of each of the jobs that run at the same time."""
        gpus = _gpus()
        each = max((job.devices for job in jobs if isinstance(job.devices, int)), default=1)
        num = self.at_once(each)
        share = max(each, len(gpus) // num)
        base = process.environment() | {CORES: str(max(1, usable_cores() // num))}
        if not gpus:
            self.share = None
            return [dict(base) for _ in range(num)]
        self.share = share
        slots = []
        for first in range(0, num * share, share):
            own = [gpus[(first + k) % len(gpus)] for k in range(min(share, len(gpus)))]
            slots.append(base | {"CUDA_VISIBLE_DEVICES": ",".join(own)})
        return slots


def _gpus() -> list[str]:
    """The GPUs that the driver may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []
