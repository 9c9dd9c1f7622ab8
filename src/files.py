"""Files that are either whole or absent: atomic writes, content hashes (standard library only)."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from src.errors import StorageError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that replaces it only when the block succeeds.

    The file is flushed to disk before the rename, so after a crash ``target`` is the old or the new
    file, never half of one. Raises StorageError naming the path when the disk refuses.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Bring the new name to the disk as well; file systems that cannot are left alone."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], content: Any) -> None:  # noqa: ANN401 (any JSON)
    """Write JSON atomically, sorted and indented so that two files can be compared line by line.

    Raises ValueError for NaN and infinity, which no other reader takes: a missing number is None.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_text(target, text + "\n")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file of a directory that others may have filled, to read bytes.

    A link there may lead to a private file, a pipe or a device never ends: neither is read. Raises
    ValueError with the reason ("is a link, ..."), OSError where there is nothing to read.
    """
    if Path(path).is_symlink():
        raise ValueError("is a link, which is not followed here")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise ValueError("is a directory, a device or a pipe, and no file")


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Content of such a file, of at most ``most`` bytes; raises as ``open_regular`` does."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes")
    return content


def content_hash(*parts: bytes | str) -> str:
    """Hexadecimal BLAKE2b hash (32 characters) of the parts and their lengths."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
