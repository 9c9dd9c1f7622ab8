"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 in 10 classes."""

from __future__ import annotations

from torchvision.datasets import CIFAR10

from src.dataset.base import ImageData
from src.dataset.torchvision_sets import batch_source, load_official


def load(root: str, split: str) -> ImageData:
    """Images (N, 3, 32, 32) and classes 0..9; N = 45,000 train, 5,000 val, 10,000 test.

    Test is the official test set.
    """
    return load_official(batch_source(CIFAR10, "cifar10"), root, split)
