"""Talking to Slurm: sbatch, squeue and scancel, which may refuse or not answer."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from src.errors import ConfigError
from src.launch import process

log = logging.getLogger(__name__)


class State(NamedTuple):
    """A job in the list of squeue: its state, "" where it is not listed, and why it waits."""

    name: str = ""
    reason: str = ""


class Cluster:
    """The user's jobs on a Slurm cluster, as of the last look.

    Attributes:
        accepted: whether Slurm has ever taken a job.
        refusal: its last message when it refused one; "" once it has taken another.
    """

    def __init__(self) -> None:
        self.accepted = False
        self.refusal = ""
        self._states: dict[str, State] = {}  # by handle

    def look(self) -> bool:
        """Read the states of all jobs; where squeue does not answer, the old ones stand."""
        listed = "--format=%i %T %r"
        done = _run(["squeue", "--me", "--noheader", "--array", "--states=all", listed])
        if done.returncode:
            log.warning("squeue does not answer: %s", " ".join(done.stderr.split()))
            return False
        self._states = {}
        for line in done.stdout.splitlines():
            handle, state, *reason = line.split(maxsplit=2)
            self._states[handle] = State(state, *(reason or ["None"]))
        return True

    def state(self, handle: str | None) -> State:
        """The state of a job at the last look."""
        return self._states.get(handle, State())

    def submit(self, options: Sequence[str], num: int) -> list[str] | None:
        """Submit an array of ``num`` elements by ``sbatch options``; returns their handles.

        None where Slurm does not take it now. Raises ConfigError where it has never taken any.
        """
        done = _run(["sbatch", *options])
        if done.returncode:
            self._refused(" ".join(done.stderr.split()), num)
            return None
        self.accepted = True
        self.refusal = ""
        number = done.stdout.split(";")[0].strip()
        log.info("Slurm job array %s: %d elements", number, num)
        handles = [f"{number}_{element}" for element in range(num)]
        self._states |= dict.fromkeys(handles, State("PENDING", "None"))
        return handles

    def cancel(self, handles: Sequence[str]) -> bool:
        """Cancel jobs; False where Slurm did not take the request."""
        return _run(["scancel", *handles]).returncode == 0

    def _refused(self, stderr: str, num: int) -> None:
        why = f"launcher=slurm: sbatch refuses: {stderr}"
        if not self.accepted:
            raise ConfigError(why)
        if why != self.refusal:
            log.warning("%s; %d jobs wait until it takes them", why, num)
        self.refusal = why


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of Slurm, without the variables of a job that the driver itself may be.

    In a session of its own: Ctrl-C reaches the driver alone.
    """
    return subprocess.run(
        command,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
        env=process.environment(),
    )
