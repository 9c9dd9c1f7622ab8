"""Where a study is kept: Optuna's journal beside the jobs, or any database that it knows."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from src.errors import ConfigError, StorageError, first_line

JOURNAL = "study.journal"


class KernelLock:
    """Held by one process at a time and gone with it; Optuna's own stays for 30 s when its process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        """Wait for it."""
        self._file = open(self.path, "w")  # noqa: SIM115 (closed by release)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Let the next one have it."""
        self._file.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The database at ``url``, or the journal of the sweep directory ``folder`` (null).

    Raises ConfigError for an address that is none or holds a password, StorageError where the journal cannot be used.
    """
    if url is not None and re.search(r"://[^/@]*:[^/]*@", url):
        advice = "settings are recorded; leave it to ~/.pgpass or the like"
        raise ConfigError(f"sweep.storage={url.partition('://')[0]}://...: holds a password, and {advice}")
    try:
        if url is not None:
            return get_storage(url)
        folder.mkdir(parents=True, exist_ok=True)
        path, lock = folder / JOURNAL, KernelLock(folder / f".{JOURNAL}.lock")
        _mend(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock))
    except OSError as error:
        raise StorageError(f"hydra.sweep.dir={folder}: the study cannot be kept here ({error.strerror})") from error
    except Exception as error:  # whatever SQLAlchemy and a driver of a database raise
        where = f"sweep.storage={url}" if url else f"{folder / JOURNAL}"
        kind = ConfigError if url else StorageError
        raise kind(f"{where}: {first_line(error)}; null is a journal file in the sweep directory") from error


def _mend(path: Path, lock: KernelLock) -> None:
    """Cut off a line that a full disk or a crash left unfinished: with another behind it nobody could read on."""
    with lock, open(path, "ab+") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 2**20))
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
