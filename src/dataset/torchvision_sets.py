"""Data sets that torchvision reads and downloads: what mnist, fashion_mnist and cifar10 share."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from torchvision.datasets.utils import check_integrity

from src.dataset.base import ImageData, check_split, fixed_split
from src.errors import DataError, require

NUM_VAL = 5000  # cut from the official training set
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte; the default is to wait for ever

# What torchvision's readers raise on a damaged file, or one of another format.
UNREADABLE = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
)


class Source(NamedTuple):
    """A torchvision data set and where it lies under its root."""

    dataset: type[MNIST] | type[CIFAR10]
    key: str  # of the permutation that cuts off val: a constant, whatever the class is called
    folder: str
    files: list[str]  # in folder
    archives: list[str]  # relative to root; unpacked without a download where they are present
    is_sound: Callable[[Path], bool]


def idx_source(dataset: type[MNIST], key: str) -> Source:
    """Source of a set in MNIST's file format.

    ROOT/MNIST/raw/train-images-idx3-ubyte and three more.
    """
    folder = f"{dataset.__name__}/raw"
    archives = [name for name, _ in dataset.resources]
    files = [name.removesuffix(".gz") for name in archives]
    paths = [f"{folder}/{name}" for name in archives]
    return Source(dataset, key, folder, files, paths, is_sound=_is_sound_idx)


def batch_source(dataset: type[CIFAR10], key: str) -> Source:
    """Source of a set in CIFAR's pickled batches, checked by MD5.

    ROOT/cifar-10-batches-py/data_batch_1 and more.
    """
    meta = [dataset.meta["filename"], dataset.meta["md5"]]
    md5 = dict([*dataset.train_list, *dataset.test_list, meta])
    return Source(
        dataset,
        key,
        dataset.base_folder,
        files=list(md5),
        archives=[dataset.filename],
        is_sound=lambda path: check_integrity(path, md5[path.name]),
    )


def load_official(source: Source, root: str, split: str) -> ImageData:
    """The official test set as test; 5,000 images of the official training set as val.

    They are cut from it by a fixed permutation; the rest is train. Nothing is written when the
    files are under ``root``; they are downloaded to it otherwise.
    """
    check_split(split)
    allowed = f"the folder that holds {source.folder}, or where to download it"
    require(bool(root), "dataset.root", root, allowed)
    place = Path(root).expanduser()
    if not all((place / source.folder / name).is_file() for name in source.files):
        _download(source, place)
    official = _read(source, place, train=split != "test")
    if split == "test":
        return official
    index = fixed_split(source.key, len(official), NUM_VAL, num_test=0, split=split)
    return official.subset(index)


def _read(source: Source, root: Path, train: bool) -> ImageData:
    """Images (N, C, H, W) uint8 and labels of the official training or test set.

    DataError names a damaged file.
    """
    try:
        official = source.dataset(str(root), train=train)
    except UNREADABLE as error:
        folder = root / source.folder
        paths = [folder / name for name in source.files]
        damaged = next((path for path in paths if not source.is_sound(path)), folder)
        problem = f"is damaged ({_reason(error)}): remove it to have it downloaded again"
        raise DataError(f"{damaged} {problem}") from error
    pixels = torch.as_tensor(official.data)  # (N, H, W), or (N, H, W, C)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(official.targets, dtype=torch.long)
    if len(images) != len(labels):
        found = f"{len(images)} images and {len(labels)} labels"
        raise DataError(f"{root / source.folder} has {found}: replace its files")
    return ImageData(images, labels)


def _download(source: Source, root: Path) -> None:
    """Download into a scratch folder and move the finished files.

    A killed download leaves nothing half done. Raises DataError.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(prefix=".download-", dir=root)
        with _timeout(DOWNLOAD_TIMEOUT), scratch_folder as name:
            scratch = Path(name)
            for archive in source.archives:
                if (root / archive).is_file():
                    (scratch / archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / archive, scratch / archive)
            source.dataset(str(scratch), download=True)
            (root / source.folder).mkdir(parents=True, exist_ok=True)
            for file in source.files:
                os.replace(scratch / source.folder / file, root / source.folder / file)
    except (OSError, RuntimeError, HTTPException) as error:  # URLError is an OSError
        name = source.dataset.__name__
        way_out = f"place {', '.join(source.files)} in {root / source.folder}"
        raise DataError(
            f"{name} is not under dataset.root={root} and cannot be downloaded ({_reason(error)}): "
            f"{way_out}, or set dataset.root to a folder that has them"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _is_sound_idx(path: Path) -> bool:
    try:
        read_sn3_pascalvincent_tensor(str(path))
    except UNREADABLE:
        return False
    return True


def _reason(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]
