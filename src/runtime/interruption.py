"""Signals: a request to stop that is met at the next step boundary, or at once where there is nothing to finish."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from src.errors import require

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
MARGIN = 1.5  # seconds of the grace that remain when the process gives up waiting for a boundary


class Interrupted(BaseException):
    """The program was asked to stop. exit_code: 130 after Ctrl-C, else 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 130 if signum == signal.SIGINT else 143


class Interruption:
    """The state of this process towards signals; a process has one set of handlers, so there is one (``INTERRUPTION``).

    While ``busy`` the first signal is a request, which the training loop meets at the next boundary; otherwise, and
    for a second signal, Interrupted is raised where the program stands. ``may_leave``: whether the loop stands at a
    boundary that all ranks leave at. Whatever happens, the process is gone after ``grace`` seconds. A
    lost terminal (SIGHUP) stops nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.busy = self.may_leave = False
        self.grace = 10.0

    def give(self, seconds: float) -> None:
        """Set the grace; raises ConfigError for less than 2 s."""
        known = isinstance(seconds, int | float) and 2 <= seconds < 1e6
        require(known, "grace_seconds", seconds, "must be a number of seconds >= 2")
        self.grace = seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in the block; afterwards those who handled them before do so again."""
        before = {signum: signal.getsignal(signum) for signum in (*STOPPING, signal.SIGHUP)}
        self.listen()
        try:
            yield
        finally:
            self.busy = self.may_leave = False
            if threading.current_thread() is threading.main_thread():
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    def listen(self) -> None:
        """Install the handlers. Again after Lightning has put its own around them, which wait for other ranks."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._on_signal)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask for a stop, as another rank has been asked."""
        self.requested = self.requested or signum

    def leave_if_requested(self) -> None:
        """Raise Interrupted where a stop was asked for."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the training loop waits for data at a boundary, a signal ends it at once; it is not busy then."""
        waits = self.busy and self.may_leave
        if waits:
            self.busy = False
            self.leave_if_requested()
        yield
        if waits:
            self.busy = True

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = self.requested or signum
        if not again:
            deadline = threading.Timer(max(0.0, self.grace - MARGIN), self._give_up)
            deadline.daemon = True
            deadline.start()
        if again or not self.busy:
            raise Interrupted(self.requested)

    def _give_up(self) -> None:
        left = Interrupted(self.requested)
        line = f"error: {left}: no step boundary within {self.grace:g} s; the last checkpoint stands\n"
        os.write(2, line.encode())
        os._exit(left.exit_code)


INTERRUPTION = Interruption()
