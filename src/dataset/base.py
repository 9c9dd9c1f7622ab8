"""What a data set is: uint8 images with labels, its fixed splits, and the batches made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from src.errors import DataError, require
from src.noise import generator

SPLITS = ("train", "val", "test")


class Images(Protocol):
    """Images indexed by a list of positions.

    A uint8 tensor (N, C, H, W), or a lazy reader with the same indexing.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Sequence[int] | Tensor) -> Tensor:
        """Return the images at ``index``: uint8 (len(index), C, H, W)."""


class Selection:
    """The images at ``index`` of other images, which are read only when they are indexed."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images = images
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Sequence[int] | Tensor) -> Tensor:
        return self.images[self.index[torch.as_tensor(index, dtype=torch.long)]]


class ImageData:
    """One split of a data set.

    Arguments:
        images: uint8 (N, C, H, W) in 0..255, in memory or read on demand.
        labels: (N,) long, or None.
        factors: (N, F) long with the known generative factors, or None.

    Raises DataError when the split is empty or the lengths disagree.
    """

    def __init__(
        self, images: Images, labels: Tensor | None = None, factors: Tensor | None = None
    ) -> None:
        if len(images) == 0:
            raise DataError("the data set has 0 images")
        for name, values in (("labels", labels), ("factors", factors)):
            if values is not None and len(values) != len(images):
                raise DataError(f"{len(values)} {name} for {len(images)} images")
        self.images = images
        self.labels = labels
        self.factors = factors

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return tuple(self.images[torch.tensor([0])].shape[1:])

    def subset(self, index: Tensor) -> ImageData:
        """The images at ``index`` (long) with labels and factors; lazy ones stay lazy."""
        in_memory = isinstance(self.images, Tensor)
        images = self.images[index] if in_memory else Selection(self.images, index)
        labels = None if self.labels is None else self.labels[index]
        factors = None if self.factors is None else self.factors[index]
        return ImageData(images, labels, factors)


class Batch(NamedTuple):
    """What a training step receives: a function of (seed, epoch, step, position), never of rank."""

    x: Tensor  # (B, C, H, W) float32 in [-1, 1]
    label: Tensor | None  # (B,) long
    seeds: list[int]  # one per image: keys of the noise that the loss draws for it
    indices: list[int]  # of the images in their split


def check_split(split: str) -> None:
    """Raise ConfigError unless ``split`` is train, val or test."""
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")


def fixed_split(name: str, num: int, num_val: int, num_test: int, split: str) -> Tensor:
    """Sorted positions (long) of ``split`` among ``num`` images.

    They are cut by a permutation that depends on ``name`` alone. Raises DataError where none is
    left to train on.
    """
    num_train = num - num_val - num_test
    if num_train < 1:
        taken = f"{num_val} for val and {num_test} for test"
        raise DataError(f"{name} has {num} images: {taken} leave none to train on")
    order = torch.randperm(num, generator=generator(name, "split"))
    parts = order.split([num_train, num_val, num_test])
    return parts[SPLITS.index(split)].sort().values


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]: x / 127.5 - 1, so that 0 and 255 are exactly -1 and 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8 by rounding; inverse of ``to_float``.

    Truncation would darken every image and shift an FID.
    """
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
