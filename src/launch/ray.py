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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

from src.errors import ConfigError, WorkerLostError, first_line, require
from src.launch import process
from src.launch.job import Job, available, check_jobs
from src.rundir.lock import ATTEMPT
from src.training.interruption import INTERRUPTION

REACH, PATIENCE = 3, 30  # seconds for a connection, and for Ray to start and answer on it
POLL = 0.2
RETRIES = 3  # of a job whose node was lost: it goes on from its checkpoint


@dataclass
class Ray:
    """Jobs of a Ray cluster, whose machines must all see the sweep directory.

    Raises ConfigError where Ray is not installed or nothing answers at the address.

    Arguments:
        address: host:port of a cluster; None starts one here.
        jobs: how many run at a time; None is as many as the cluster takes.
        cpus: what a job needs, per device.
        gpus: likewise.
        grace: seconds that a job has to stop.
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
            value = getattr(self, name)
            require(value >= 0, f"launcher.{name}", value, "must be >= 0")
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
            most = max(machine.get(kind, 0) for machine in machines)
            needed = each * job.devices
            wanted = f"a job needs {needed:g} with trainer.devices={job.devices}"
            there = f"no machine of the cluster has more than {most:g}"
            require(needed <= most, f"launcher.{name}", each, f"{wanted}, {there}")

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Hand the jobs over, at most ``jobs`` at a time; yield each as it ends.

        Leaving the loop stops what is running.
        """
        waiting = deque(available(jobs))
        running: dict[object, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.jobs or math.inf):
                    job = waiting.popleft()
                    if job.is_finished():  # by another driver, while this one waited
                        yield job, 0, ""
                    else:
                        running[self._start(job)] = job
                if running:
                    ended, _ = self.ray.wait(list(running), timeout=POLL)
                    for task in ended:
                        yield running.pop(task), *self._result(task)
                waiting.extend(available(jobs))
        finally:
            self._stop(running)

    def open(self) -> None:
        """Connect to the cluster, or start one.

        Raises ConfigError where there is none at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        advice = "give host:port of a running head node, or null to start a cluster on this machine"
        try:
            if self.address is not None:
                _probe(self.address)
            own = {} if self.address else {"include_dashboard": False}
            # None would look for a cluster that somebody has left here
            place = self.address or "local"
            self.ray.init(place, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            why = f"no Ray there ({first_line(error)})"
            raise ConfigError(f"launcher.address={self.address}: {why}; {advice}") from error
        INTERRUPTION.listen()  # Ray has put a handler of its own in its place

    def _start(self, job: Job) -> object:
        job.mark_log()
        job.begin()
        needs = {"num_cpus": self.cpus * job.devices, "num_gpus": self.gpus * job.devices}
        work = self.ray.remote(_work).options(max_retries=RETRIES, **needs)
        # Ray would give each rank the cores of all
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(self.cpus))))
        return work.remote(job, os.getcwd(), self.grace, {"OMP_NUM_THREADS": threads})

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
    """Connect in a process that can be killed.

    Ray itself tries for minutes, and ends its process after that.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=REACH).close()
    command = [sys.executable, "-c", f"import ray; ray.init({address!r}, log_to_driver=False)"]
    settings = {"capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, timeout=PATIENCE, **settings)
        code = done.returncode
        stderr = done.stderr
    except subprocess.TimeoutExpired as late:
        code = 1
        stderr = (late.stderr or b"").decode(errors="replace")
    if "InvalidAuthToken" in stderr:
        both = "RAY_AUTH_MODE=token, and the cluster's ~/.ray/auth_token here as well"
        raise OSError(f"it wants a token: {both}")
    if code:
        raise OSError(f"nothing that speaks Ray within {PATIENCE} s")


def _work(job: Job, cwd: str, grace: float, own: Mapping[str, str]) -> int:
    """In a worker of Ray: run the job as a process, so that it is as free as in any other place.

    own: variables of the job.
    """
    os.chdir(cwd)
    task = importlib.import_module("ray").get_runtime_context().get_task_id()
    variables = process.environment() | own | {ATTEMPT: f"ray-{task} {time.time_ns()}"}
    while not job.is_finished():
        child = process.begin(job, variables)
        if child is not None:
            return _wait(child, grace)
        time.sleep(POLL)
    return 0  # another process has done it


def _wait(child: subprocess.Popen, grace: float) -> int:
    """Wait for a process; stop it where ray.cancel raises KeyboardInterrupt here."""
    try:
        while child.poll() is None:
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
