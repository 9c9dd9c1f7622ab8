"""Where a study is kept: Optuna's journal beside the jobs, or any database that it knows."""

from __future__ import annotations

import re
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from src.errors import ConfigError, StorageError, first_line
from src.rundir.lock import KernelLock

JOURNAL = "study.journal"


class JournalLock(KernelLock):
    """Whoever is about to write finds whole lines: what a full disk or a crash left of one is cut off."""

    def __init__(self, path: Path, journal: Path) -> None:
        super().__init__(path)
        self.journal = journal

    def acquire(self) -> bool:
        """Wait, and mend; with another line behind half a one nobody could read on."""
        super().acquire()
        with open(self.journal, "ab+") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(max(0, end - 2**20))
                tail = file.read()
                file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        return True


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The database at ``url``, or the journal of the sweep directory ``folder`` (null).

    Raises ConfigError for an address that is none or holds a password, StorageError where the journal cannot be used.
    """
    if url is not None and re.search(r"://[^/@]*:[^/]*@", url):
        advice = "settings are recorded; leave it to ~/.pgpass or the like"
        raise ConfigError(
            f"sweep.storage={url.partition('://')[0]}://...: holds a password, and {advice}"
        )
    try:
        if url is not None:
            return get_storage(url)
        folder.mkdir(parents=True, exist_ok=True)
        path, lock = folder / JOURNAL, JournalLock(folder / f".{JOURNAL}.lock", folder / JOURNAL)
        with lock:
            pass
        return JournalStorage(JournalFileBackend(str(path), lock))
    except OSError as error:
        raise StorageError(
            f"hydra.sweep.dir={folder}: the study cannot be kept here ({error.strerror})"
        ) from error
    except Exception as error:  # whatever SQLAlchemy and a driver of a database raise
        where = f"sweep.storage={url}" if url else f"{folder / JOURNAL}"
        kind = ConfigError if url else StorageError
        raise kind(
            f"{where}: {first_line(error)}; null is a journal file in the sweep directory"
        ) from error
