"""A job as a process of this machine: one per job, and none outlives its parent for long."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from src.launch.job import Job
from src.parallel.process import end_with_parent

ROOT = Path(__file__).resolve().parents[2]
# variables from which Lightning would take ranks and hosts
OF_THE_OUTER_JOB = ("SLURM_", "SLURMD_", "PMI_", "PMIX_")


def environment() -> dict[str, str]:
    """Variables of a job: it finds ``src`` wherever it starts.

    It takes no rank of an allocation that the driver runs in.
    """
    kept = {}
    for name, value in os.environ.items():
        if name == "SLURM_CONF" or not name.startswith(OF_THE_OUTER_JOB):
            kept[name] = value
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept


def begin(job: Job, variables: Mapping[str, str]) -> subprocess.Popen | None:
    """Start a job that writes to its log; None where a process of an earlier driver still does.

    The lock on the log is shared by all processes of the job and ends with the last of them: a
    driver that is started again waits for what a killed one has left. On Linux the job gets SIGTERM
    when its parent dies.
    """
    log = job.file("log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        job.mark_log()
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=dict(variables),
            start_new_session=True,  # Ctrl-C reaches the driver alone, which stops the jobs once
            preexec_fn=_die_with_parent,
        )


def stop(children: Iterable[subprocess.Popen], seconds: float) -> None:
    """Terminate the jobs, which keep a checkpoint first.

    What is left after ``seconds``, or on a second signal, is killed.
    """
    children = list(children)
    try:
        for child in children:
            child.terminate()
        end = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        for child in children:
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _die_with_parent() -> None:
    end_with_parent(signal.SIGTERM)
