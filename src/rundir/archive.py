"""A checkpoint as an archive (.zip): whole, plain, and the same for every reader of it."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import BinaryIO

from src.rundir.pickled import MAX_PICKLE, ExcessError

MAX_DIRECTORY = 4 * 2**20  # bytes of the list of an archive's parts: about 50,000 tensors
END = b"PK\x05\x06"  # the last 22 bytes; before them, 20 and 56 bytes for large archives
LARGE = b"PK\x06\x07"
EMPTY = 2**26  # bytes from which on a file must be on the disk, in a 64th of its length at least


def damage_within(file: BinaryIO) -> str:
    """What is wrong with an open checkpoint, or ""; every byte of it is read."""
    try:
        problem = _disorder(file)
        if problem:
            return problem
        with zipfile.ZipFile(file) as archive:
            problem = _oddity(archive, file)
            part = None if problem else archive.testzip()
    except Exception as error:  # zipfile and zlib raise many kinds on foreign files
        return f"truncated or not a checkpoint: {error}" if str(error) else "truncated"
    return problem if part is None else f"checksum of {part}"


def pickled(file: BinaryIO) -> bytes:
    """The part of a checkpoint that says what its tensors are; the file is sound.

    Raises ExcessError where it is too large, KeyError where there is none.
    """
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(f"{_folder(archive)}/data.pkl")
        if entry.file_size > MAX_PICKLE:
            raise ExcessError(f"holds more than {MAX_PICKLE} bytes beside its tensors")
        return archive.read(entry)


def _folder(archive: zipfile.ZipFile) -> str:
    """The one folder that all parts lie in; torch goes by the first."""
    return archive.namelist()[0].partition("/")[0]


def _disorder(file: BinaryIO) -> str:
    """What makes the list of parts too long, or not to be found where every reader looks."""
    state = os.fstat(file.fileno())
    size = state.st_size
    if size > EMPTY and state.st_blocks * 512 < size // 64:
        return f"{size} bytes long, and next to nothing of it is on the disk"
    file.seek(-min(size, 98), os.SEEK_END)
    tail = file.read(98)
    end = tail[-22:]
    if end[:4] != END:
        return "" if size < 22 or END not in tail else "something follows its end"
    length = struct.unpack("<I", end[12:16])[0]
    if tail[-42:-38] == LARGE:
        if struct.unpack("<Q", tail[-34:-26])[0] != size - 98:
            return "its list of parts is not where it should be"
        length = struct.unpack("<Q", tail[40:48])[0]
    return "it has too many parts" if length > MAX_DIRECTORY else ""


def _oddity(archive: zipfile.ZipFile, file: BinaryIO) -> str:
    """What torch's reader could take for something else than zipfile does."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size or any(
        entry.compress_type != zipfile.ZIP_STORED for entry in entries
    ):
        return "its parts are packed, or lie over each other"
    names = {entry.filename.casefold() for entry in entries}
    folders = {entry.filename.partition("/")[0] for entry in entries}
    if len(names) < len(entries) or len(folders) != 1:
        return "its parts share names, or are not in one folder"
    file.seek(archive.start_dir + 42)
    first = struct.unpack("<I", file.read(4))[0]
    return "" if first == entries[0].header_offset else "something precedes its parts"
