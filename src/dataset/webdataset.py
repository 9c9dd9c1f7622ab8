"""Shards in WebDataset's format (.tar), by path or URL: no machine need hold the data set.

``python -m src.dataset.webdataset SHARD.tar ...`` writes ``SHARD.tar.index`` beside each shard. An
index holds the places of the samples, so they are read one by one and in any order: that of a run
does not depend on ranks, workers or restarts.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
import torch
from torch import Tensor

from src.dataset.base import SPLITS, ImageData, check_split
from src.dataset.image_folder import decode_image
from src.dataset.ranges import read_ranges
from src.dataset.shards import NO_LABEL, Index, read_indices, write_index
from src.errors import DataError, ProjectError, require

PROTOCOLS = ("file", "http", "https", "s3", "gs")  # the last two with the packages s3fs and gcsfs
MAX_SHARDS = 100_000
MAX_BRACES = 32
TENTH = {"val": 0, "test": 1}  # which tenth of the training shards stands in for a missing split


def load(root: str, split: str, image_size: int = 64, channels: int = 3) -> ImageData:
    """Images (N, channels, image_size, image_size) of the shards at ``root``, read when indexed.

    Shards named val... and test... are these splits, all others train; a missing val or test is a
    tenth of train, by a hash of each sample's key. Labels: the number in a sample's ``.cls``; None
    where no sample has one.

    Arguments:
        root: a folder of .tar files, or a path or URL in which ``*`` (paths only), ``{a,b}`` and
            ``{000..146}`` stand for several.
        split: train, val or test.
        image_size, channels: what images are resized and cropped to; 1 (grey) or 3 (colour).

    Raises ConfigError for other values, DataError where shards are missing, damaged or too few.
    """
    check_split(split)
    allowed = "a folder of shards, or a pattern such as train-{000..146}.tar"
    require(bool(root), "dataset.root", root, allowed)
    require(image_size >= 1, "image_size", image_size, "an integer of at least 1")
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (colour)")
    shards, indices = _of_split(_by_split(_find(root)), split)
    start, size, label, _ = map(np.concatenate, zip(*indices, strict=True))
    if not len(start):
        problem = f"no image of {len(shards)} shards falls into {split}: add more"
        raise DataError(f"dataset.root={root}: {problem}")
    without = int((label == NO_LABEL).sum())
    if 0 < without < len(label):
        problem = f"{without} of {len(label)} samples of {split} have no label (.cls)"
        raise DataError(f"dataset.root={root}: {problem}")
    shard = np.repeat(np.arange(len(shards)), [len(index.start) for index in indices])
    images = ShardImages(shards, (shard, start, size), image_size, channels)
    return ImageData(images, None if without else torch.from_numpy(label))


class ShardImages:
    """Images in shards as uint8 (B, channels, image_size, image_size): resized, centre cropped.

    The shorter side becomes ``image_size``. All images of a batch are requested together. Raises
    DataError where one cannot be read, for ten seconds, or is no image.

    Arguments:
        shards: their paths or URLs.
        places: per image its shard's position in ``shards``, and start and size of its file there,
            in bytes.
        image_size, channels: of the images; 1 (grey) or 3 (colour).
    """

    def __init__(
        self, shards: Sequence[str], places: Sequence[np.ndarray], image_size: int, channels: int
    ) -> None:
        self.shards = shards
        self.shard, self.start, self.size = places
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: Sequence[int] | Tensor) -> Tensor:
        at = torch.as_tensor(index, dtype=torch.long).numpy()
        paths = [self.shards[shard] for shard in self.shard[at]]
        starts = self.start[at].tolist()
        ends = (self.start[at] + self.size[at]).tolist()
        files = read_ranges(list(zip(paths, starts, ends, strict=True)))
        size = self.image_size
        images = torch.empty(len(at), self.channels, size, size, dtype=torch.uint8)
        for image, file, path, start in zip(images, files, paths, starts, strict=True):
            name = f"at byte {start} of {path}"
            image.copy_(decode_image(io.BytesIO(file), name, size, self.channels))
        return images


def _of_split(shards: dict[str, list[str]], split: str) -> tuple[list[str], list[Index]]:
    """The shards that a split is read from, and of each the samples that belong to it."""
    if shards[split] and split != "train":
        return shards[split], read_indices(shards[split])
    own = shards["train"]
    indices = read_indices(own)
    if split != "train":
        return own, [index.take(index.tenth == TENTH[split]) for index in indices]
    taken = [TENTH[name] for name in TENTH if not shards[name]]
    return own, [index.take(~np.isin(index.tenth, taken)) for index in indices]


def _find(root: str) -> list[str]:
    """Sorted paths or URLs of the shards at ``root``. Raises ConfigError, DataError."""
    known = fsspec.utils.get_protocol(root) in PROTOCOLS
    require(known, "dataset.root", root, f"a path, or a URL of {', '.join(PROTOCOLS[1:])}")
    if "://" in root:
        return sorted(_written_out(root))
    place = Path(root).expanduser()
    local = fsspec.filesystem("file")
    patterns = _written_out(str(place / "*.tar" if os.path.isdir(place) else place))
    found = sorted(path for pattern in patterns for path in local.glob(pattern))
    if not found:
        raise DataError(f"dataset.root={root}: there is no shard (.tar)")
    odd = next((path for path in found if not Path(path).is_file()), None)
    if odd:
        raise DataError(f"dataset.root={root}: {odd} is no ordinary file")
    return found


def _written_out(pattern: str) -> list[str]:
    """All that ``_expand`` gives, at most MAX_SHARDS; raises DataError beyond."""
    few = pattern.count("{") <= MAX_BRACES
    found = list(itertools.islice(_expand(pattern), MAX_SHARDS + 1)) if few else []
    if not few or len(found) > MAX_SHARDS:
        what = f"stands for more than {MAX_SHARDS} shards, or has over {MAX_BRACES} braces"
        raise DataError(f"dataset.root={pattern[:100]}: {what}")
    return found


def _expand(pattern: str) -> Iterator[str]:
    """``{a,b}`` and ``{08..10}`` written out, as a shell would."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        yield pattern
        return
    words: Iterable[str] = found[1].split(",")
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", found[1])
    if numbers:
        first, last = numbers.groups()
        words = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    for word in words:
        yield from _expand(pattern[: found.start()] + word + pattern[found.end() :])


def _by_split(shards: list[str]) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard in shards:
        named = re.match("val|test", PurePosixPath(shard).name)
        by_split[named[0] if named else "train"].append(shard)
    if not by_split["train"]:
        problem = f"all {len(shards)} shards are named val or test, none is left to train on"
        raise DataError(f"{shards[0]}: {problem}")
    return by_split


def main() -> None:
    """Write the indices of the shards on the command line."""
    for shard in sys.argv[1:]:
        try:
            print(f"{shard}.index: {write_index(shard)} images")
        except ProjectError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
