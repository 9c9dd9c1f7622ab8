"""Features: numbers in which generated and real images are compared (Heusel et al. 2017)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class ImageSource(Protocol):
    """Images indexed by a list of positions.

    A uint8 tensor (N, C, H, W), or a lazy reader with the same indexing.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Sequence[int]) -> Tensor:
        """Return the images at ``index``: uint8 (len(index), C, H, W)."""


@runtime_checkable
class CanClassify(Protocol):
    """Features of a classifier, which also give class probabilities (for the Inception score)."""

    def probabilities_of(self, features: Tensor) -> Tensor:
        """Class probabilities (B, num_classes) float32 of features (B, num_features).

        Without a second pass over the images.
        """


@runtime_checkable
class HasAccuracy(Protocol):
    """Features of a classifier whose classes are those of the data set."""

    def accuracy(self, images: ImageSource, labels: Tensor) -> float:
        """Fraction of the images that it gives the right label."""


class Features(nn.Module, ABC):
    """Frozen map from images to features: uint8 (B, C, H, W) -> (B, num_features) float32.

    name: part of the logged name (``val/fid_<name>``). resize: what is done to the size of images.
    The result does not depend on the surroundings: always eval mode, no gradient and float32, also
    under autocast; images are moved to the features' device.
    """

    name: str
    num_features: int
    resize: str = "none"

    def __init__(self) -> None:
        super().__init__()
        # On the features' device, also before there are weights.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    @property
    @abstractmethod
    def key(self) -> str:
        """Hash of all that defines the features: numbers may be compared where keys are equal."""

    @property
    def device(self) -> torch.device:
        """Where the features are computed; ``.to(device)`` moves it."""
        return self._anchor.device

    def fit(self, images: ImageSource, labels: Tensor | None) -> None:
        """Train on a data set, where the features are trained; pretrained ones do nothing."""
        return

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, num_features) float32 of uint8 images (B, C, H, W)."""
        check_images(images)
        return self._frozen(self._extract, images)

    def train(self, mode: bool = True) -> Features:
        """Stay in eval mode, whatever module the features are a part of."""
        return super().train(False)

    @abstractmethod
    def _extract(self, images: Tensor) -> Tensor:
        """Compute the features of checked images on the right device."""

    def _frozen(self, compute: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Run ``compute`` on images or features: no gradient, float32, on the features' device."""
        self.eval()  # parts built after the constructor start in training mode
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return compute(values.to(self.device)).float()


def check_images(images: Tensor) -> None:
    """Raise TypeError unless the images are a uint8 tensor, ValueError unless (B, C, H, W)."""
    kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
    if kind != torch.uint8:
        allowed = "features take uint8 in 0..255, round(127.5 * x + 127.5) of x in [-1, 1]"
        raise TypeError(f"images are {kind}: {allowed}")
    if images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}: features take (B, C, H, W)")
