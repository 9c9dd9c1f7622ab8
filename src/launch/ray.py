"""Jobs on a Ray cluster: one that is there, or one that is started on this machine."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from src.errors import ConfigError, WorkerLostError, first_line, require
from src.launch import process
from src.launch.job import Job, available, check_jobs
from src.rundir.lock import ATTEMPT
from src.training.interruption import INTERRUPTION

REACH, PATIENCE = 3, 10  # seconds for a connection, and for Ray to answer on it
POLL = 0.2
RETRIES = 3  # of a job whose node was lost: it goes on from its checkpoint


@dataclass
class Ray:
    """address: host:port of a cluster, or null to start one here. cpus, gpus: what a job needs, per device.

    jobs: how many run at a time; null is as many as the cluster takes. All machines must see the sweep directory.
    Raises ConfigError where Ray is not installed or nothing answers at the address.
    """

    address: str | None = None
    jobs: int | None = None
    cpus: float = 1
    gpus: float = 0
    grace: float = 10

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        form = self.address is None or re.fullmatch(r"(ray://)?[^:/]+:\d+", self.address)
        require(form, "launcher.address", self.address, "must be host:port, or null")
        for name in ("cpus", "gpus"):
            require(
                getattr(self, name) >= 0, f"launcher.{name}", getattr(self, name), "must be >= 0"
            )
        self.ray = _import_ray()

    @property
    def leaving(self) -> float:
        """Seconds that it may take to stop everything."""
        return self.grace + 15

    def at_once(self, devices: int | str) -> int:
        """``jobs``, or one."""
        return self.jobs or 1

    def check(self, job: Job) -> None:
        """Raise ConfigError where no machine of the cluster could hold the job."""
        require(job.nodes == 1, "trainer.num_nodes", job.nodes, "must be 1 with launcher=ray")
        counted = isinstance(job.devices, int)
        require(counted, "trainer.devices", job.devices, "must be a number with launcher=ray")
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for name, kind, each in (("cpus", "CPU", self.cpus), ("gpus", "GPU", self.gpus)):
            most, needed = max(machine.get(kind, 0) for machine in machines), each * job.devices
            allowed = f"a job needs {needed:g} with trainer.devices={job.devices}, no machine of the cluster has"
            require(needed <= most, f"launcher.{name}", each, f"{allowed} more than {most:g}")

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Hand the jobs over, at most ``jobs`` at a time; yield each as it ends. Leaving stops what is running."""
        waiting, running = deque(available(jobs)), {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.jobs or math.inf):
                    job = waiting.popleft()
                    if job.is_finished():  # by another driver, while this one waited
                        yield job, 0, ""
                    else:
                        running[self._start(job)] = job
                ended, _ = self.ray.wait(list(running), timeout=POLL) if running else ((), ())
                for task in ended:
                    yield running.pop(task), *self._result(task)
                waiting.extend(available(jobs))
        finally:
            self._stop(running)

    def open(self) -> None:
        """Connect to the cluster, or start one. Raises ConfigError where there is none at the address."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        advice = "give host:port of a running head node, or null to start a cluster on this machine"
        try:
            if self.address is not None:
                _probe(self.address)
            own = {} if self.address else {"include_dashboard": False}
            place = (
                self.address or "local"
            )  # None would look for a cluster that somebody has left here
            self.ray.init(place, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"launcher.address={self.address}: no Ray there ({first_line(error)}); {advice}"
            ) from error
        INTERRUPTION.listen()  # Ray has put a handler of its own in its place

    def _start(self, job: Job) -> object:
        job.hear()
        job.begin()
        needs = {"num_cpus": self.cpus * job.devices, "num_gpus": self.gpus * job.devices}
        work = self.ray.remote(_work).options(max_retries=RETRIES, **needs)
        return work.remote(job, os.getcwd(), self.grace)

    def _result(self, task: object) -> tuple[int, str]:
        try:
            return self.ray.get(task), ""
        except self.ray.exceptions.TaskCancelledError:
            return 143, "cancelled at the cluster"
        except self.ray.exceptions.RayError as error:
            return WorkerLostError.exit_code, f"Ray has lost it: {first_line(error)}"

    def _stop(self, running: dict[object, Job]) -> None:
        """Cancel, which ends each job with a checkpoint, and leave the cluster."""
        for task in running:
            self.ray.cancel(task)
        if running:
            self.ray.wait(list(running), num_returns=len(running), timeout=self.grace + 5)
        for job in running.values():
            job.settle(143)
        self.ray.shutdown()


def _probe(address: str) -> None:
    """Connect in a process that can be given up: Ray itself tries for minutes, and ends its process after that."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=REACH).close()
    words = [sys.executable, "-c", f"import ray; ray.init({address!r}, log_to_driver=False)"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        code, said = 1, (late.stderr or b"").decode(errors="replace")
    if "InvalidAuthToken" in said:
        raise OSError(
            "it wants a token: RAY_AUTH_MODE=token, and the cluster's ~/.ray/auth_token here as well"
        )
    if code:
        raise OSError(f"nothing that speaks Ray within {PATIENCE} s")


def _work(job: Job, cwd: str, grace: float) -> int:
    """In a worker of Ray: run the job as a process, so that it is as free as in any other place."""
    os.chdir(cwd)
    attempt = (
        f"ray-{importlib.import_module('ray').get_runtime_context().get_task_id()} {time.time_ns()}"
    )
    while not job.is_finished():
        child = process.begin(job, process.environment() | {ATTEMPT: attempt})
        if child is not None:
            break
        time.sleep(POLL)
    else:
        return 0  # another process has done it
    try:
        while child.poll() is None:  # ray.cancel raises KeyboardInterrupt here
            time.sleep(POLL)
    finally:
        process.stop([child], grace)
    return child.returncode


def _import_ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        why = "the package ray is not installed; install it with: make install EXTRAS=ray"
        raise ConfigError(f"launcher=ray: {why}") from error
