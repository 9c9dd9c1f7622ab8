"""Shards in WebDataset's format (.tar), by path or URL, read sample by sample: no machine need hold the data set.

``python -m src.dataset.webdataset SHARD.tar ...`` writes ``SHARD.tar.index`` beside each shard. An index says where the
samples lie, so they can be read in any order: that of a run does not depend on ranks, workers or restarts.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from torch import Tensor

from src.dataset.base import SPLITS, ImageData, check_split
from src.dataset.image_folder import EXTENSIONS, decode_image
from src.errors import DataError, ProjectError, require
from src.files import atomic_path
from src.noise import mix

PROTOCOLS = ("file", "http", "https", "s3", "gs")  # the last two with the packages s3fs and gcsfs
WAITS = (0.5, 2.0, 8.0)  # seconds before what could not be read is asked for again
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # of a sample, and what kind of file it is
TENTH = {"val": 0, "test": 1}  # which tenth of the training shards stands in for a missing split
NO_LABEL = -1


class Index(NamedTuple):
    """Per sample of a shard, long: where its image lies (bytes), its label, and which tenth of the data it is in."""

    start: np.ndarray
    size: np.ndarray
    label: np.ndarray
    tenth: np.ndarray

    def take(self, mask: np.ndarray) -> Index:
        """The samples where ``mask`` holds."""
        return Index(*(values[mask] for values in self))


def load(root: str, split: str, image_size: int = 64, channels: int = 3) -> ImageData:
    """Images (N, channels, image_size, image_size) of the shards at ``root``, fetched when they are indexed.

    root: a folder of .tar files, or a path or URL in which ``*`` (paths only), ``{a,b}`` and ``{000..146}`` stand for
    several. Shards named val... and test... are these splits, all others train; a missing val or test is a tenth of
    train, by a hash of each sample's key. Labels: the number in a sample's ``.cls``; None where no sample has one.
    """
    check_split(split)
    require(
        bool(root),
        "dataset.root",
        root,
        "a folder of shards, or a pattern such as train-{000..146}.tar",
    )
    require(image_size >= 1, "image_size", image_size, "an integer of at least 1")
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (colour)")
    shards = _by_split(_find(root))
    taken = [TENTH[name] for name in TENTH if not shards[name]]
    own = shards[split] or shards["train"]
    indices = _indices(own)
    if not shards[split]:
        indices = [index.take(index.tenth == TENTH[split]) for index in indices]
    elif split == "train":
        indices = [index.take(~np.isin(index.tenth, taken)) for index in indices]
    start, size, label, _ = map(np.concatenate, zip(*indices, strict=True))
    if not len(start):
        raise DataError(
            f"dataset.root={root}: no image of {len(own)} shards falls into {split}: add more"
        )
    without = int((label == NO_LABEL).sum())
    if 0 < without < len(label):
        raise DataError(
            f"dataset.root={root}: {without} of {len(label)} samples of {split} have no label (.cls)"
        )
    shard = np.repeat(np.arange(len(own)), [len(index.start) for index in indices])
    images = ShardImages(own, (shard, start, size), image_size, channels)
    return ImageData(images, None if without else torch.from_numpy(label))


class ShardImages:
    """Images in shards as uint8 (B, channels, image_size, image_size): shorter side resized, centre cropped.

    places: per image its shard's position in ``shards``, and start and size of its file there, in bytes. All images of
    a batch are asked for together. Raises DataError where one cannot be read, for ten seconds, or is no image.
    """

    def __init__(
        self, shards: Sequence[str], places: Sequence[np.ndarray], image_size: int, channels: int
    ) -> None:
        self.shards, self.image_size, self.channels = shards, image_size, channels
        self.shard, self.start, self.size = places

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: Sequence[int] | Tensor) -> Tensor:
        at = torch.as_tensor(index, dtype=torch.long).numpy()
        paths = [self.shards[shard] for shard in self.shard[at]]
        starts, ends = self.start[at].tolist(), (self.start[at] + self.size[at]).tolist()
        images = torch.empty(
            len(at), self.channels, self.image_size, self.image_size, dtype=torch.uint8
        )
        for image, file, path, start in zip(
            images, _read(paths, starts, ends), paths, starts, strict=True
        ):
            image.copy_(
                decode_image(
                    io.BytesIO(file), f"at byte {start} of {path}", self.image_size, self.channels
                )
            )
        return images


def _find(root: str) -> list[str]:
    """Sorted paths or URLs of the shards that ``root`` stands for. Raises ConfigError, DataError."""
    protocol = fsspec.utils.get_protocol(root)
    require(
        protocol in PROTOCOLS,
        "dataset.root",
        root,
        f"a path, or a URL of {', '.join(PROTOCOLS[1:])}",
    )
    if "://" in root:
        return sorted(_expand(root))
    place = Path(root).expanduser()
    patterns = _expand(str(place / "*.tar" if place.is_dir() else place))
    found = sorted(path for pattern in patterns for path in fsspec.filesystem("file").glob(pattern))
    if not found:
        raise DataError(f"dataset.root={root}: there is no shard (.tar)")
    return found


def _expand(pattern: str) -> Iterator[str]:
    """``{a,b}`` and ``{08..10}`` written out, as a shell would."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        yield pattern
        return
    words = found[1].split(",")
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        words = [
            f"{number:0{len(numbers[1])}}" for number in range(int(numbers[1]), int(numbers[2]) + 1)
        ]
    for word in words:
        yield from _expand(pattern[: found.start()] + word + pattern[found.end() :])


def _by_split(shards: list[str]) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard in shards:
        named = re.match("val|test", PurePosixPath(shard).name)
        by_split[named[0] if named else "train"].append(shard)
    if not by_split["train"]:
        raise DataError(
            f"{shards[0]}: all {len(shards)} shards are named val or test, none is left to train on"
        )
    return by_split


def _read(paths: list[str], starts: list[int], ends: list[int | None]) -> list[bytes]:
    """Bytes ``start .. end - 1`` of each path, asked for together, and again where that fails. Raises DataError."""
    try:
        files = fsspec.filesystem(fsspec.utils.get_protocol(paths[0]))  # each process has its own
    except ImportError as error:
        raise DataError(f"dataset.root={paths[0]}: {error}") from error
    parts: list[Any] = [None] * len(paths)
    missing = list(range(len(paths)))
    for wait in (*WAITS, 0):
        asked = ([values[i] for i in missing] for values in (paths, starts, ends))
        for i, part in zip(missing, files.cat_ranges(*asked, on_error="return"), strict=True):
            short = (
                ends[i] is not None
                and not isinstance(part, Exception)
                and len(part) != ends[i] - starts[i]
            )
            parts[i] = (
                OSError(f"{len(part)} bytes came instead of {ends[i] - starts[i]}")
                if short
                else part
            )
        missing = [i for i in missing if isinstance(parts[i], Exception)]
        if all(isinstance(parts[i], FileNotFoundError) for i in missing):
            break
        time.sleep(wait)
    for i in missing:
        raise DataError(
            f"cannot read {paths[i]}: {parts[i] or type(parts[i]).__name__}"
        ) from parts[i]
    return parts


def _indices(shards: list[str]) -> list[Index]:
    """The index of each shard, from beside it; a local shard without one is read from end to end."""
    there = [shard for shard in shards if "://" in shard or Path(f"{shard}.index").is_file()]
    try:
        contents = (
            _read([f"{shard}.index" for shard in there], [0] * len(there), [None] * len(there))
            if there
            else []
        )
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        advice = (
            "where the shards are, make them with python -m src.dataset.webdataset SHARD.tar ..."
        )
        raise DataError(f"{error}: shards at a URL need an index beside them; {advice}") from error
    known = {shard: _parsed(shard, content) for shard, content in zip(there, contents, strict=True)}
    return [known[shard] if shard in known else _scan(shard) for shard in shards]


def _parsed(shard: str, content: bytes) -> Index:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            index, size = (
                Index(*(file[name].astype(np.int64) for name in Index._fields)),
                int(file["bytes"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{shard}.index is damaged: make it anew") from error
    if "://" not in shard and Path(shard).stat().st_size != size:
        raise DataError(f"{shard}.index is of another shard than is there now: make it anew")
    return index


def _scan(shard: str) -> Index:
    """The samples of a local shard, in its order: files whose paths agree up to the first dot of the name."""
    found: dict[str, list[int]] = {}
    try:
        with tarfile.open(
            shard, "r:"
        ) as tar:  # not compressed: nothing could be read from its middle
            for member in tar:
                named = KEY.fullmatch(member.name)
                if not named or not member.isreg():
                    continue
                start, size, label, tenth = found.get(
                    named[1], (0, 0, NO_LABEL, mix("webdataset", named[1]) % 10)
                )
                if f".{named[2].lower()}" in EXTENSIONS:
                    start, size = member.offset_data, member.size
                elif named[2] == "cls":
                    label = int(tar.extractfile(member).read())
                found[named[1]] = [start, size, label, tenth]
            tar.fileobj.seek(
                tar.offset
            )  # tarfile takes a shard that was cut off, or two in one file, for whole
            end = tar.fileobj.read(2**20)
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise tarfile.TarError(
                    f"no end mark at byte {tar.offset}: cut off, or several in one file"
                )
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{shard}: not a sound .tar file of samples ({error})") from error
    rows = [row for row in found.values() if row[1]]
    return Index(*np.array(rows, dtype=np.int64).reshape(-1, len(Index._fields)).T.copy())


def write_index(shard: str) -> int:
    """Write ``<shard>.index`` beside a local shard; returns its number of images. Raises DataError, StorageError."""
    index = _scan(shard)
    with atomic_path(f"{shard}.index") as temporary, open(temporary, "wb") as file:
        np.savez(file, bytes=Path(shard).stat().st_size, **index._asdict())
    return len(index.start)


def main() -> None:
    """Write the indices of the shards on the command line."""
    for shard in sys.argv[1:]:
        try:
            print(f"{shard}.index: {write_index(shard)} images")
        except ProjectError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
