"""Ranges of bytes of files, by path or URL, with the login of a server."""

from __future__ import annotations

import time
from collections.abc import Sequence

import fsspec

from src.dataset.credentials import authorization, refused
from src.errors import DataError, first_line

WAITS = (0.5, 2.0, 8.0)  # seconds before what could not be read is requested again

Range = tuple[str, int, int | None]  # path or URL, first byte, and the byte after the last


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of each range, requested together; again after each of ``WAITS`` where that fails.

    An end of None is that of the file. What does not exist, or wants a login, is requested once.
    Raises DataError where a range cannot be read.
    """
    parts: list[bytes | Exception | None] = [None] * len(ranges)
    missing = list(range(len(ranges)))
    for wait in (*WAITS, 0):
        answers = _request([ranges[i] for i in missing])
        for i, answer in zip(missing, answers, strict=True):
            parts[i] = answer
        missing = [i for i in missing if isinstance(parts[i], Exception)]
        hopeless = all(_is_final(parts[i]) for i in missing)
        if not missing or hopeless:
            break
        time.sleep(wait)
    if missing:
        error = parts[missing[0]]
        path = ranges[missing[0]][0]
        advice = f"; {refused(path)}" if _wants_login(error) else ""
        raise DataError(f"cannot read {path}: {first_line(error)}{advice}") from error
    return parts


def _is_final(answer: object) -> bool:
    """Whether asking again gives nothing else."""
    return isinstance(answer, FileNotFoundError) or _wants_login(answer)


def _wants_login(answer: object) -> bool:
    return getattr(answer, "status", None) in (401, 403)


def _request(ranges: list[Range]) -> list[bytes | Exception]:
    """One attempt at all ranges; in the place of one that fails, its error."""
    parts: list[bytes | Exception] = [b""] * len(ranges)
    servers: dict[str, list[int]] = {}
    for i, (path, _, _) in enumerate(ranges):
        servers.setdefault("/".join(path.split("/", 3)[:3]) if "://" in path else "", []).append(i)
    for own in servers.values():
        paths, starts, ends = map(list, zip(*(ranges[i] for i in own), strict=True))
        answers = _files(paths[0]).cat_ranges(paths, starts, ends, on_error="return")
        for i, answer in zip(own, answers, strict=True):
            parts[i] = _whole(answer, *ranges[i][1:])
    return parts


def _files(path: str) -> fsspec.AbstractFileSystem:
    """The file system of a path, or of a URL with the login of its server; raises DataError."""
    protocol = fsspec.utils.get_protocol(path)
    login = authorization(path) if protocol in ("http", "https") else None
    settings = {"client_kwargs": {"headers": {"Authorization": login}}} if login else {}
    try:
        return fsspec.filesystem(protocol, **settings)  # each process has its own
    except ImportError as error:
        raise DataError(f"dataset.root={path}: {error}") from error


def _whole(part: bytes | Exception, start: int, end: int | None) -> bytes | Exception:
    """The part, or an error where it has another length than its range."""
    if isinstance(part, Exception) or end is None or len(part) == end - start:
        return part
    return OSError(f"{len(part)} bytes came instead of {end - start}")
