"""Following a job that was handed over to Slurm: whether it has ended, and how."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.errors import first_line
from src.foreign import read_text
from src.launch.job import Job
from src.launch.slurm_commands import State

log = logging.getLogger(__name__)

ALIVE = {
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
    "RESV_DEL_HOLD",
}
# Slurm's doing, where it does not requeue by itself
LOST = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
# reasons to wait that are not worth a line
USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Prolog")
# polls of a job that is over without an exit code; submissions without a new checkpoint
PATIENCE = 3

Verdict = tuple[int, str]  # exit code, and why


@dataclass(eq=False)
class Submission:
    """A job on its way through Slurm, over all its submissions by this driver.

    Attributes:
        job: what was, or will be, handed over.
        reason: why it waits, as last logged.
        last_checkpoint: content of ``latest.json`` when it was last lost.
        losses: how often it was lost since its last new checkpoint.
        silent_polls: for how many polls it is over and has left no exit code.
    """

    job: Job
    reason: str = ""
    last_checkpoint: str | None = None
    losses: int = 0
    silent_polls: int = 0

    @property
    def number(self) -> int:
        """Of the job, in the sweep."""
        return self.job.number

    @property
    def handle(self) -> str | None:
        """The name of the job at the cluster."""
        return self.job.handle

    def verdict(self, state: State) -> Verdict | None:
        """How the job has ended; None where it has not, or is to be submitted again."""
        if state.name in ALIVE:
            self._note(state)
            return None
        if self.job.is_finished():
            return 0, ""
        exit_file = self.job.file("exit")
        if state.name not in LOST and exit_file.exists():
            return _exit_code(exit_file)
        decide = VERDICTS.get(state.name, _failed)
        return decide(self, state)

    def _note(self, state: State) -> None:
        """Record whether the job runs, and log what it waits for."""
        status = "waiting" if state.name == "PENDING" else "running"
        if self.job.status != status:
            self.job.status = status
            self.job.record()
        if status == "waiting" and state.reason not in (*USUAL, self.reason):
            self.reason = state.reason
            log.info("job %d waits: %s", self.number, state.reason)


def _exit_code(path: Path) -> Verdict:
    """What the job's script has written there."""
    try:
        return int(read_text(path, most=16)), ""
    except (OSError, ValueError) as error:
        return 1, f"{path} holds no exit code ({first_line(error)})"


def _content(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError):
        return ""


def _lost(submission: Submission, state: State) -> Verdict | None:
    """Once more while it gets on: with a new checkpoint each time, or a few times without."""
    latest = submission.job.run_dir / "checkpoints" / "latest.json"
    checkpoint = _content(latest)
    if checkpoint != submission.last_checkpoint:
        submission.last_checkpoint = checkpoint
        submission.losses = 0
    submission.losses += 1
    if submission.losses < PATIENCE:
        return None
    return 1, f"Slurm says {state.name}, for the third time without a checkpoint"


def _cancelled(submission: Submission, state: State) -> Verdict:
    return 143, "cancelled at the cluster"


def _failed(submission: Submission, state: State) -> Verdict:
    return 1, f"Slurm says {state.name}"


def _completed(submission: Submission, state: State) -> Verdict | None:
    """Without an exit code: the file may be late."""
    if _may_be_late(submission):
        return None
    return 1, "Slurm says COMPLETED, without an exit code"


def _not_listed(submission: Submission, state: State) -> Verdict | None:
    """Slurm forgets jobs after some minutes, and an element that is cancelled while it waits."""
    if _may_be_late(submission):
        return None
    if submission.job.status == "waiting":
        return _cancelled(submission, state)
    return 143, "Slurm no longer knows it"


def _may_be_late(submission: Submission) -> bool:
    submission.silent_polls += 1
    return submission.silent_polls < PATIENCE


# Of a job that is not alive, not finished and has left no exit code; of any other state _failed.
VERDICTS: dict[str, Callable[[Submission, State], Verdict | None]] = {
    **dict.fromkeys(LOST, _lost),
    "CANCELLED": _cancelled,
    "COMPLETED": _completed,
    "": _not_listed,
}
