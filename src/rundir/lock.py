"""The lock of a run directory: one live process at a time, however the one before has ended."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.errors import StorageError
from src.files import open_regular, read_regular
from src.foreign import TEXT, checked, json_object

log = logging.getLogger(__name__)

NAME = ".lock"
ATTEMPT = "GENBENCH_ATTEMPT"  # "<job> <number>", set by launchers: a cluster restarts lost jobs
OWNER = {  # what a lock holds
    "host": (str,),
    "pid": (int,),
    "start": (str,),
    "time": (str,),
    "job": TEXT,
    "attempt": (int,),
}
MAX_PID = 2**31 - 1
MAX_LOCK = 4096  # bytes
UNFINISHED = 60  # seconds: an older empty lock was left by a process killed while writing it


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory/.lock`` while the block runs: JSON of host, process, start, time (UTC).

    The lock of a dead process is taken over with a warning; of several that try, one succeeds. An
    earlier attempt of the same job of a cluster is dead, on whatever host it was: the cluster has
    ended it before it started this one. Raises StorageError where the owner lives, or is on another
    host and may.
    """
    path = directory / NAME
    mine = json.dumps(_myself())
    try:
        _take(path, mine)
    except OSError as error:
        raise StorageError(
            f"hydra.run.dir={directory}: cannot be locked ({error.strerror})"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            if read_regular(path, MAX_LOCK).decode(errors="replace") == mine:
                path.unlink()


def check_free(directory: Path) -> None:
    """Raise StorageError where ``held``."""
    problem = held(directory)
    if problem:
        raise StorageError(f"hydra.run.dir={directory}: {problem}")


def held(directory: Path) -> str:
    """Why ``directory`` cannot be locked, or "": its process lives, or may on another host."""
    path = directory / NAME
    try:
        text = read_regular(path, MAX_LOCK).decode(errors="replace")
        return _why_not(_owner(text), path)
    except FileNotFoundError:
        return ""
    except ValueError as error:
        return _no_lock(path, error)


def _no_lock(path: Path, error: ValueError) -> str:
    return f"{NAME} {error}; if no run is alive in it, delete {path}"


def _take(path: Path, mine: str) -> None:
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            break
        except FileExistsError:
            _remove_if_dead(path)
    try:
        os.write(handle, mine.encode())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(handle)


def _remove_if_dead(path: Path) -> None:
    """Remove the lock of a dead process; raise StorageError for any other."""
    try:
        file = open_regular(path)
    except FileNotFoundError:  # released a moment ago
        return
    except ValueError as error:
        raise StorageError(f"hydra.run.dir={path.parent}: {_no_lock(path, error)}") from error
    with file:
        # one process at a time looks at this file, and removes no other than this one
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return
        content = file.read(MAX_LOCK + 1)
        owner = _owner(content.decode(errors="replace"))
        problem = _why_not(owner, path)
        if len(content) > MAX_LOCK:
            problem = _no_lock(path, ValueError(f"has more than {MAX_LOCK} bytes"))
        if problem:
            raise StorageError(f"hydra.run.dir={path.parent}: {problem}")
        who = f"process {owner['pid']}" if owner else "a process that had no time to say which"
        log.warning("hydra.run.dir=%s: taken over from %s, which is dead", path.parent, who)
        path.unlink()


def _why_not(owner: dict[str, Any] | None, path: Path) -> str:
    """Why the lock cannot be taken over; "" where its owner is dead."""
    if owner is None:
        written = path.stat()
        if written.st_size == 0 and time.time() - written.st_mtime > UNFINISHED:
            return ""
        return f"in use by an unknown process; if no run is alive in it, delete {path}"
    used = f"in use by process {owner['pid']} on {owner['host']} since {owner['time']}"
    if owner["host"] != socket.gethostname():
        job, number = _attempt()
        if job and owner["job"] == job and owner["attempt"] < number:
            return ""
        return f"{used}; if that run is dead (it cannot be seen from here), delete {path}"
    alive = _start_of(owner["pid"]) in (owner["start"], "")
    return f"{used}; wait until it has ended, or choose another directory" if alive else ""


def _owner(text: str) -> dict[str, Any] | None:
    """What the lock says of its owner; None where that cannot be."""
    try:
        owner = checked(json_object(text), OWNER, {"attempt": 0})
    except ValueError:
        return None
    return owner if 0 < owner["pid"] <= MAX_PID else None


def _myself() -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    job, number = _attempt()
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
        "time": now,
    }
    return mine | ({"job": job, "attempt": number} if job else {})


def _attempt() -> tuple[str, int]:
    """The cluster's job that this process belongs to, or "", and the number of the attempt."""
    slurm = os.environ.get("SLURM_JOB_ID", "")
    default = f"slurm-{slurm} {os.environ.get('SLURM_RESTART_COUNT', 0)}" if slurm else ""
    job, _, number = os.environ.get(ATTEMPT, default).rpartition(" ")
    return job, int(number or 0)


def _start_of(pid: int) -> str | None:
    """When a live process began: boot of the machine and clock ticks since; "" where unknown.

    psutil's create_time would move with the clock of the machine.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it lives, and is somebody else's
        pass
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux, or hidden: the process id alone has to do
        return ""
    return None if state == "Z" else f"{boot} {fields[18]}"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Run the block in one process at a time, of those that name the same lock file.

    On file systems without locks it runs all the same.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            stack.enter_context(brief_lock(path))
        yield


def brief_lock(path: Path) -> FileLock:
    """A lock for a moment, which ends with its process.

    It waits for as long as another process holds it. Raises an error where the file system has no
    such locks: a file in their place would outlive a killed process.
    """
    return FileLock(path, fallback_to_soft=False)
