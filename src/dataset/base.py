"""What a data set is: uint8 images with labels, its fixed splits, and the batches made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from src.errors import DataError, require
from src.noise import Rows, Seeds, generator

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

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (B, C, H, W) at ``index`` (B,) long, and their labels where there are any.

        Of a tensor by ``index_select``, which copies whole images: ``[index]`` takes ten times as
        long.
        """
        in_memory = isinstance(self.images, Tensor)
        images = self.images.index_select(0, index) if in_memory else self.images[index]
        return images, None if self.labels is None else self.labels.index_select(0, index)

    def subset(self, index: Tensor) -> ImageData:
        """The images at ``index`` (long) with labels and factors; lazy ones stay lazy."""
        in_memory = isinstance(self.images, Tensor)
        images = self.images[index] if in_memory else Selection(self.images, index)
        labels = None if self.labels is None else self.labels[index]
        factors = None if self.factors is None else self.factors[index]
        return ImageData(images, labels, factors)


@dataclass
class Batch:
    """What a training step receives: a function of (seed, epoch, step, position), never of rank.

    It moves itself: a trainer that finds ``to`` does not look into it.

    Arguments:
        x: (B, C, H, W) float32 in [-1, 1].
        label: (B,) long, or None.
        noise: keys of what is drawn for these images.
        indices: (B,) int64, of the images in their split.
    """

    x: Tensor
    label: Tensor | None
    noise: Seeds | Rows
    indices: np.ndarray

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; the host does not wait for the copy."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU need no wait."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        label = None if self.label is None else change(self.label)
        return Batch(change(self.x), label, self.noise, self.indices)


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
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8 by rounding; inverse of ``to_float``.

    Truncation would darken every image and shift an FID.
    """
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
