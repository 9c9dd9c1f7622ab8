"""The images themselves as features: no network, no labels, no download."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from src.errors import require
from src.features.base import Features
from src.files import content_hash


class Pixels(Features):
    """Pixels in [-1, 1], flattened; sides above ``max_size`` are averaged down to it.

    shape: of the images, (C, H, W); at the default ``max_size`` at most 3072 features for RGB. A
    distance between Gaussians sees mean and covariance of the pixels and nothing else: samples of a
    Gaussian fitted to the data are as good as the data, and noise costs what it adds to the
    variance. So it distinguishes a broken model from a working one and shows little of how images
    look.
    """

    name = "pixels"

    def __init__(self, shape: Sequence[int], max_size: int = 32) -> None:
        sensible = len(shape) == 3 and min(shape) >= 1
        require(sensible, "shape", shape, "must be channels, height, width, each >= 1")
        require(max_size >= 1, "max_size", max_size, "must be 1 or more")
        super().__init__()
        self.shape = tuple(shape)
        channels, *sides = self.shape
        self.size = tuple(min(side, max_size) for side in sides)
        if self.size != tuple(sides):
            self.resize = f"area to {self.size[0]} x {self.size[1]}"
        self.num_features = channels * self.size[0] * self.size[1]

    @property
    def key(self) -> str:
        """Hash of the shapes before and after averaging."""
        return content_hash("pixels-1", repr((self.shape, self.size)))

    def _extract(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            found = f"these are {tuple(images.shape[1:])}"
            raise ValueError(f"features=pixels is set up for images {self.shape}, {found}")
        return F.adaptive_avg_pool2d(images.float() / 127.5 - 1, self.size).flatten(1)
