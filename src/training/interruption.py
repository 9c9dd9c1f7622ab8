"""Signals: a request to stop, met at the next step boundary or at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import Popen
from types import FrameType

from src.config.output import silence
from src.errors import Interrupted, require
from src.training import last_resort
from src.training.last_resort import STOPPING

MARGIN = 1.5  # seconds of the grace that remain when the process gives up waiting for a boundary


class Interruption:
    """How this process answers signals; it has one set of handlers, so there is one instance.

    While ``busy`` the first signal is a request, which the training loop meets at the next
    boundary; otherwise, and for a second signal, Interrupted is raised where the program stands.
    ``may_leave``: whether the loop stands at a boundary that all ranks leave at. A thread sees
    signals also while the program is in C code: after ``grace`` seconds, or soon after a second
    signal, it ends the process whatever it does; where C code lets no thread run, a small process
    beside this one does (``last_resort``). A lost terminal stops nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.busy = self.may_leave = False
        self.grace = 10.0
        self._depth = 0
        self._told = -1
        self._beside: Popen[bytes] | None = None

    def give(self, seconds: float) -> None:
        """Set the grace; raises ConfigError for less than 2 s."""
        known = isinstance(seconds, int | float) and 2 <= seconds < 1e6
        require(known, "grace_seconds", seconds, "must be a number of seconds >= 2")
        self.grace = seconds
        self._tell()

    def _tell(self) -> None:
        if self._beside:
            with suppress(OSError):  # it has ended
                last_resort.tell_grace(self._told, self.grace)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in the block; afterwards those who handled them before do so again.

        Whatever ends the block after a signal is the signal's doing: it becomes Interrupted.
        """
        if self._depth or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.getsignal(signum) for signum in (*STOPPING, signal.SIGHUP)}
        terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        read_end, write_end, beside = _pipe()
        os.set_blocking(write_end, False)
        self._told, self._beside = write_end, beside
        self._tell()
        wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True, name="signals").start()
        signal.signal(signal.SIGHUP, lambda *_: silence(terminals))
        self._depth = 1
        self.requested = None
        self.listen()
        try:
            yield
        except Exception as error:
            if self.requested is not None:
                raise Interrupted(self.requested) from error
            raise
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(wakeup)
            self._beside = None
            os.close(write_end)  # the thread ends, and with it the deadline
            if beside:
                last_resort.leave(beside)
            self.requested = None
            self.busy = False
            self.may_leave = False
            self._depth = 0

    def listen(self) -> None:
        """Install the handlers, again after Lightning's own, which wait for other ranks."""
        if self._depth:
            for signum in STOPPING:
                signal.signal(signum, self._on_signal)

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Request a stop because another rank received a signal."""
        self.requested = self.requested or signum

    def leave_if_requested(self) -> None:
        """Raise Interrupted where a stop was asked for."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the loop waits for data at a boundary it is not busy: a signal ends it at once."""
        waits = self.busy and self.may_leave
        if waits:
            self.busy = False
            self.leave_if_requested()
        yield
        if waits:
            self.busy = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first signal in the block is met at its end: what is done there is done whole."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False
        self.leave_if_requested()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = self.requested or signum
        if again or not self.busy:
            raise Interrupted(self.requested)

    def _watch(self, read_end: int) -> None:
        """Count signals as they arrive, and end the process when its time is over."""
        seen: list[int] = []
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            while signals := pipe.read(64):
                for signum in signals:
                    if signum in STOPPING:
                        seen.append(signum)
                        patience = max(0.0, self.grace - MARGIN) if len(seen) == 1 else 1.0
                        threading.Thread(
                            target=_give_up, args=(seen[0], patience, pipe), daemon=True
                        ).start()


def _pipe() -> tuple[int, int, Popen[bytes] | None]:
    """Both ends of the pipe that signals take, and the process that it leads through, if any."""
    signals, write_end = os.pipe()
    read_end, passed_on = os.pipe()
    beside = last_resort.start(signals, passed_on)
    os.close(passed_on)
    if beside:
        os.close(signals)
        return read_end, write_end, beside
    os.close(read_end)
    return signals, write_end, None


def leave_signals_to_parent(worker: int) -> None:
    """For data workers: the training answers a signal to the group, and ends its workers."""
    for signum in (*STOPPING, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _give_up(signum: int, patience: float, pipe: object) -> None:
    """End the process after so many seconds, unless it no longer listens: then it is ending."""
    time.sleep(patience)
    if not pipe.closed:
        left = Interrupted(signum)
        line = f"error: stopped by {left} without waiting any longer; the last checkpoint stands\n"
        os.write(2, line.encode())
        os._exit(left.exit_code)


INTERRUPTION = Interruption()
