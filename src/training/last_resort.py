"""A small process beside a training, which ends it when C code keeps Python from answering.

C code that holds the interpreter's lock lets no thread of its process run, so no deadline can be
kept from within. What arrives in the pipe of signals passes through this process on its way to the
thread that counts them.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
YEARS = 1e8  # seconds
AGAIN = 2.5  # seconds that remain after a second signal
GRACE = b"\0"  # no signal: the seconds that remain after the first one follow


def start(signals: int, passed_on: int) -> subprocess.Popen[bytes] | None:
    """Start the process between two ends of pipes; None where no process can be started."""
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    with suppress(OSError):  # the limit of processes: there is no last resort then
        return subprocess.Popen(command, stdin=signals, stdout=passed_on, start_new_session=True)
    return None


def leave(process: subprocess.Popen[bytes]) -> None:
    """See the process off: it ends when its pipe is closed, which data workers may hold open."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.wait()


def tell_grace(pipe: int, seconds: float) -> None:
    """Set the seconds between the first signal and the end."""
    os.write(pipe, GRACE + struct.pack("<d", seconds))


def _watch(watched: int) -> None:
    """Pass signals on until the pipe is closed or the time is over."""
    grace, end = 10.0, YEARS + time.monotonic()
    stopping = False
    while select.select([0], [], [], max(0.0, end - time.monotonic()))[0]:
        arrived = os.read(0, 4096)
        if not arrived:
            return
        while arrived:
            first, arrived = arrived[:1], arrived[1:]
            if first == GRACE:
                grace, arrived = struct.unpack("<d", arrived[:8])[0], arrived[8:]
                continue
            if first[0] in STOPPING:
                patience = AGAIN if stopping else grace
                stopping = True
                end = min(end, time.monotonic() + patience)
            os.write(1, first)
    if os.getppid() == watched:
        os.write(2, b"error: stopped by a signal without an answer; the last checkpoint stands\n")
        os.kill(watched, signal.SIGKILL)


if __name__ == "__main__":
    with suppress(OSError):  # the one that is watched has gone
        _watch(int(sys.argv[1]))
