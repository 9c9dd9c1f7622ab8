"""Where a study is kept: Optuna's journal beside the jobs, or any database that it supports."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from src.config.url_secrets import wrong_in
from src.errors import ConfigError, StorageError, first_line
from src.rundir.lock import brief_lock

JOURNAL = "study.journal"
TAIL = 2**20  # bytes in which the last whole line of a journal is looked for


class JournalLock:
    """Optuna's lock for writing, which cuts off the half line that a crash has left."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._lock = brief_lock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        """Wait, and repair: a line appended to half a one would make the journal unreadable."""
        self._lock.acquire()
        try:
            self._mend()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Let the next process have it."""
        self._lock.release()

    def _mend(self) -> None:
        with open(self.journal, "ab+") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(max(0, end - TAIL))
                tail = file.read()
                file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The database at ``url``, or the journal of the sweep directory ``folder`` (null).

    Raises ConfigError for an invalid address or one with a password, StorageError where the journal
    cannot be used.
    """
    found = "" if url is None else wrong_in(url)
    if found:
        scheme = url.partition("://")[0]
        raise ConfigError(f"sweep.storage={scheme}://...: {found}")
    try:
        if url is not None:
            return get_storage(url)
        folder.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(folder / JOURNAL)
        lock.acquire()
        lock.release()
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock))
    except OSError as error:
        why = f"the study cannot be kept here ({error.strerror})"
        raise StorageError(f"hydra.sweep.dir={folder}: {why}") from error
    except Exception as error:  # whatever SQLAlchemy and a driver of a database raise
        where = f"sweep.storage={url}" if url else f"{folder / JOURNAL}"
        kind = ConfigError if url else StorageError
        advice = "null is a journal file in the sweep directory"
        raise kind(f"{where}: {first_line(error)}; {advice}") from error
