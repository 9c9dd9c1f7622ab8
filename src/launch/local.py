"""Jobs on this machine: so many at a time, each with GPUs and CPU cores of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from src.errors import require
from src.launch import process
from src.launch.job import Job, available, check_jobs

POLL = 0.1  # seconds


@dataclass
class Local:
    """jobs: how many at a time; null is as many as the GPUs serve, one without GPUs. grace: seconds a job has to stop.

    Raises ConfigError for less than one.
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
        """Raise ConfigError for a job that asks for its devices by name, or on several machines."""
        require(job.nodes == 1, "trainer.num_nodes", job.nodes, "must be 1 with launcher=local")
        counted = job.devices == "auto" or isinstance(job.devices, int)
        require(
            counted,
            "trainer.devices",
            job.devices,
            "must be a number or auto: the launcher chooses which",
        )
        fits = self.share is None or job.devices == "auto" or job.devices <= self.share
        allowed = (
            f"must be at most {self.share}, as the GPUs are dealt out; give a smaller launcher.jobs"
        )
        require(fits, "trainer.devices", job.devices, allowed)

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Run the jobs; yield each with its exit code as it ends. Leaving the loop stops what is running."""
        waiting, running = deque(available(jobs)), {}
        free = deque(self._slots(waiting))
        try:
            while waiting or running:
                for _ in range(len(waiting) if free else 0):
                    job = waiting.popleft()
                    if job.is_finished():  # by another driver, while this one waited for it
                        yield job, 0, ""
                    elif not free or (child := process.begin(job, free[0])) is None:
                        waiting.append(job)
                    else:
                        running[job.number] = job, child, free.popleft()
                        job.begin()
                for number, (job, child, slot) in list(running.items()):
                    if child.poll() is not None:
                        del running[number]
                        free.append(slot)
                        yield job, child.returncode, ""
                waiting.extend(available(jobs))
                time.sleep(POLL)
        finally:
            process.stop([child for _, child, _ in running.values()], self.grace)
            for job, child, _ in running.values():
                job.settle(child.returncode)

    def _slots(self, jobs: Sequence[Job]) -> list[dict[str, str]]:
        """The environment of each of the jobs that run at the same time."""
        gpus = _gpus()
        each = max((job.devices for job in jobs if isinstance(job.devices, int)), default=1)
        num = self.at_once(each)
        share = max(each, len(gpus) // num)
        self.share = share if gpus else None
        base = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num))
        } | process.environment()
        chosen = [
            [gpus[(slot * share + k) % len(gpus)] for k in range(min(share, len(gpus)))]
            for slot in range(num)
        ]
        return [base | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if gpus else {}) for own in chosen]


def _gpus() -> list[str]:
    """The GPUs that the driver may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []
