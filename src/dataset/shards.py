"""Shards in WebDataset's format (.tar): where their samples lie.

An index ``SHARD.tar.index`` beside a shard holds for each sample the place of its image, so images
can be read in any order and from a URL; a local shard without one is read from end to end.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.dataset.image_folder import EXTENSIONS
from src.dataset.ranges import read_ranges
from src.errors import DataError
from src.files import atomic_path, open_regular, read_regular
from src.noise import mix

KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # of a sample, and what kind of file it is
NO_LABEL = -1
LONGEST = 20  # bytes of a label
MAX_LABEL = 2**31
LAST = 2**62  # byte of a file
MAX_INDEX = 2**30  # bytes: 30 million images


class Index(NamedTuple):
    """Per sample of a shard, long: place of its image (bytes), label, tenth of the data."""

    start: np.ndarray
    size: np.ndarray
    label: np.ndarray
    tenth: np.ndarray

    def take(self, mask: np.ndarray) -> Index:
        """The samples where ``mask`` holds."""
        return Index(*(values[mask] for values in self))


def read_indices(shards: list[str]) -> list[Index]:
    """The index of each shard, from beside it; a local shard without one is read from end to end.

    Raises DataError.
    """
    remote = [shard for shard in shards if "://" in shard]
    known = dict(zip(remote, _read_files(remote), strict=True))
    for shard in set(shards) - set(remote):
        if os.path.lexists(f"{shard}.index"):
            known[shard] = _read_local(shard)
    return [_parsed(shard, known[shard]) if shard in known else _scan(shard) for shard in shards]


def _read_local(shard: str) -> bytes:
    """Content of the index beside a local shard."""
    path = f"{shard}.index"
    try:
        return read_regular(os.path.realpath(path), MAX_INDEX)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: it {error}") from error


def _read_files(shards: list[str]) -> list[bytes]:
    """The contents of the indices beside the shards."""
    if not shards:
        return []
    try:
        return read_ranges([(f"{shard}.index", 0, None) for shard in shards])
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        command = "python -m src.dataset.webdataset SHARD.tar ..."
        way_out = f"where the shards are, make them with {command}"
        raise DataError(f"{error}: shards at a URL need an index beside them; {way_out}") from error


def _parsed(shard: str, content: bytes) -> Index:
    try:
        _check_unpacked(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            index = Index(*(_numbers(file[name]) for name in Index._fields))
            size = int(file["bytes"])
        _check(index)
        _check_places(index, size)
    except Exception as error:  # numpy and zipfile raise many kinds on foreign files, one of memory
        raise DataError(f"{shard}.index is damaged: make it anew") from error
    if "://" not in shard and Path(shard).stat().st_size != size:
        raise DataError(f"{shard}.index is of another shard than is there now: make it anew")
    return index


def _numbers(values: np.ndarray) -> np.ndarray:
    """One whole number for each sample, as int64; raises ValueError."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("is no row of whole numbers")
    return values.astype(np.int64, casting="safe")


def _check(index: Index) -> None:
    """Raise ValueError unless all rows are as long, and every image has a place and a size."""
    if len({len(values) for values in index}) != 1:
        raise ValueError("has rows of several lengths")
    if (index.start < 0).any() or (index.size < 0).any() or (index.start > LAST - index.size).any():
        raise ValueError("has a place that no file has")
    labels, tenths = index.label, index.tenth
    if not ((labels >= NO_LABEL) & (labels < MAX_LABEL) & (tenths >= 0) & (tenths < 10)).all():
        raise ValueError("has a label or a tenth that is none")


def _check_unpacked(content: bytes) -> None:
    """Raise ValueError for parts that are packed: a few bytes of these can hold very many."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("its parts are packed")


def _check_places(index: Index, size: int) -> None:
    """Raise ValueError unless every image lies in ``size`` bytes."""
    if ((index.start > size) | (index.size > size - index.start)).any():
        raise ValueError("images lie outside")


def _scan(shard: str) -> Index:
    """The index of a local shard, its samples in their order. Raises DataError."""
    try:
        with (
            open_regular(os.path.realpath(shard)) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,  # uncompressed: its middle can be read
        ):
            samples = _samples(tar)
            _check_end(tar)
        rows = [row for row in samples.values() if row[1]]  # those with an image
        index = Index(*np.array(rows, dtype=np.int64).reshape(-1, len(Index._fields)).T.copy())
        _check(index)
    except (OSError, ValueError, OverflowError, RecursionError, tarfile.TarError) as error:
        raise DataError(f"{shard}: not a sound .tar file of samples ({error})") from error
    return index


def _samples(tar: tarfile.TarFile) -> dict[str, list[int]]:
    """Key -> row of the index; the files of a sample agree up to the first dot of their name."""
    found: dict[str, list[int]] = {}
    before = -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # which would keep all of them
        if member.offset <= before or member.size < 0:
            raise tarfile.TarError(f"goes back at byte {member.offset}")
        if member.issparse():
            raise tarfile.TarError(f"a file with holes at byte {member.offset}")
        before = member.offset
        named = KEY.fullmatch(member.name)
        if not named or not member.isreg():
            continue
        key, kind = named.groups()
        row = found.setdefault(key, [0, 0, NO_LABEL, mix("webdataset", key) % 10])
        if f".{kind.lower()}" in EXTENSIONS:
            row[:2] = member.offset_data, member.size
        elif kind == "cls":
            row[2] = _label(tar.extractfile(member).read(LONGEST + 1))
    return found


def _label(content: bytes) -> int:
    """The label in a file of a few bytes; raises ValueError."""
    label = int(content) if len(content) <= LONGEST else -1
    if not 0 <= label < MAX_LABEL:
        raise ValueError(f"a label is {content[:LONGEST]!r}, a small integer was expected")
    return label


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise TarError for a shard that was cut off, or two in one file, which tarfile accepts."""
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(2**20)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        reason = "cut off, or several in one file"
        raise tarfile.TarError(f"no end mark at byte {tar.offset}: {reason}")


def write_index(shard: str) -> int:
    """Write ``<shard>.index`` beside a local shard; returns its number of images.

    Raises DataError, StorageError.
    """
    index = _scan(shard)
    with atomic_path(f"{shard}.index") as temporary, open(temporary, "wb") as file:
        np.savez(file, bytes=Path(shard).stat().st_size, **index._asdict())
    return len(index.start)
