"""Any folder of images, read on demand: flat, with class sub-folders, or train/ val/ test/."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from src.dataset.base import SPLITS, ImageData, check_split
from src.errors import DataError, require
from src.files import open_regular
from src.noise import mix

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64 * 10**6  # of a file: 200 MB decoded; a few hundred kilobytes can hold many more
MAX_RATIO = 1000  # of the sides: PIL makes a tall picture of a line of pixels before it crops
MAX_AGAIN = 1000  # folders met once more through links: 50 links can make 2**25 paths
# By content: a file of another kind is refused whatever its name.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def load(root: str, split: str, image_size: int = 64, channels: int = 3) -> ImageData:
    """Images (N, channels, image_size, image_size) of the files under ``root``, read when indexed.

    With ROOT/train (and ROOT/val, ROOT/test) these are the splits; a missing val or test is a tenth
    of train. Otherwise all of ROOT is cut 80/10/10. Both cuts go by a hash of each file's path, so
    new files move no other. Labels: the index of the (sorted) sub-folder, or None unless every
    image lies in a sub-folder.
    """
    check_split(split)
    require(bool(root), "dataset.root", root, "a folder of images")
    require(image_size >= 1, "image_size", image_size, "an integer of at least 1")
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (colour)")
    place = Path(root).expanduser()
    files = _files_by_split(place)
    every = [file for part in files.values() for _, file in part]
    if not every:
        raise DataError(f"dataset.root={place} holds no image ({', '.join(EXTENSIONS)})")
    if not files[split]:
        problem = f"none of its {len(every)} images falls into {split}: add more"
        raise DataError(f"dataset.root={place}: {problem}")
    labels = _labels([file for _, file in files[split]], every)
    paths = [str(place / folder / file) for folder, file in files[split]]
    return ImageData(FolderImages(paths, image_size, channels), labels)


class FolderImages:
    """Image files as uint8 (B, channels, image_size, image_size): resized, centre cropped.

    The shorter side becomes ``image_size``.
    """

    def __init__(self, paths: Sequence[str], image_size: int, channels: int) -> None:
        # One array, so that workers share its memory.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Sequence[int] | Tensor) -> Tensor:
        positions = torch.as_tensor(index, dtype=torch.long).tolist()
        size = self.image_size
        images = torch.empty(len(positions), self.channels, size, size, dtype=torch.uint8)
        for image, position in zip(images, positions, strict=True):
            path = os.fsdecode(self.paths[position])
            image.copy_(read_image(path, size, self.channels))
        return images


def read_image(path: str, image_size: int, channels: int) -> Tensor:
    """One image file as uint8 (channels, image_size, image_size).

    Resized by LANCZOS with PIL's antialias; an alpha channel is dropped. Raises DataError naming
    the file when it is corrupt, truncated, of another format or of more than MAX_PIXELS.
    """
    try:
        # Links are followed, to ordinary files alone: a named pipe would be waited for for ever.
        file = open_regular(os.path.realpath(path) if os.path.islink(path) else path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read image {path}: it is gone, or no ordinary file") from error
    with file:
        return decode_image(file, path, image_size, channels)


def decode_image(source: BinaryIO, name: str, image_size: int, channels: int) -> Tensor:
    """``read_image`` of an open file; ``name`` is what an error calls it."""
    try:
        with warnings.catch_warnings():
            # PIL's own limit, which is higher.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                size = f"{opened.width} x {opened.height}"
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(f"{size} pixels are more than {MAX_PIXELS}")
                if max(opened.size) > MAX_RATIO * min(opened.size):
                    raise DataError(f"{size} pixels: one side is over {MAX_RATIO} times the other")
                picture = _convert(opened, "L" if channels == 1 else "RGB")
        picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds on damaged files
        raise DataError(f"cannot read image {name}: {error}") from error
    pixels = torch.from_numpy(np.array(picture))
    return pixels.view(image_size, image_size, channels).permute(2, 0, 1)


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey: keep the upper 8, where PIL may clip
        upper = np.asarray(picture).astype(np.uint32) >> 8
        picture = Image.fromarray(upper.astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode != mode:
        picture = picture.convert("RGB")
    return picture.convert(mode)


def _files_by_split(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Per split its image files as (folder below root, path below that folder), sorted."""
    if not root.is_dir():
        way_out = "set dataset.root to a folder of images"
        raise DataError(f"dataset.root={root} is not a folder: {way_out}")
    folders = [split for split in SPLITS if (root / split).is_dir()]
    if folders and "train" not in folders:
        problem = f"has {' and '.join(folders)} but no train: add it, or rename them"
        raise DataError(f"dataset.root={root} {problem}")
    files: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    pool = "train" if folders else ""
    for file in _find_images(root / pool):
        split = _drawn_split(file)
        files["train" if split in folders else split].append((pool, file))
    for split in set(folders) - {"train"}:
        files[split] = [(split, file) for file in _find_images(root / split)]
    return files


def _drawn_split(file: str) -> str:
    """Split of a file in an 80/10/10 cut, a function of its relative path alone."""
    return {0: "val", 1: "test"}.get(mix("image_folder", "split", file) % 10, "train")


def _find_images(folder: Path) -> list[str]:
    """Sorted paths below ``folder`` of its image files; hidden files and folders are left out."""
    return sorted(path for path in _walk(folder) if path.lower().endswith(EXTENSIONS))


def _walk(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from error

    met: set[tuple[int, int]] = set()
    again = 0
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(current)
        for name in folders:
            _check_no_loop(folder, here / name)
        again += _identity(current) in met
        met.add(_identity(current))
        if again > MAX_AGAIN:
            problem = f"links lead to its folders over {MAX_AGAIN} times again: remove some"
            raise DataError(f"dataset.root={folder}: {problem}")
        for name in files:
            # Hidden files include the "._photo.jpg" that macOS leaves on foreign disks.
            if not name.startswith("."):
                yield (here / name).relative_to(folder).as_posix()


def _identity(folder: str | Path) -> tuple[int, int]:
    """What a folder is, by whatever path: its disk and number there."""
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _check_no_loop(root: Path, folder: Path) -> None:
    """Raise DataError for a link to a folder above it, which would be walked for ever."""
    if not folder.is_symlink():
        return
    leads_to = _identity(folder)
    if any(leads_to == _identity(place) for place in folder.parents):
        problem = f"{folder} leads back to a folder that it is in: remove the link"
        raise DataError(f"dataset.root={root}: {problem}")


def _labels(files: list[str], every: list[str]) -> Tensor | None:
    """Index (long) of each file's first folder among those of ``every`` file.

    None if some file lies in no folder.
    """
    if not all("/" in file for file in every):
        return None
    classes = sorted({file.split("/")[0] for file in every})
    index = {name: number for number, name in enumerate(classes)}
    return torch.tensor([index[file.split("/")[0]] for file in files])
