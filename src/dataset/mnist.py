"""Handwritten digits, MNIST (LeCun et al. 1998): 70,000 grey images of 28x28."""

from __future__ import annotations

from torchvision.datasets import MNIST

from src.dataset.base import ImageData
from src.dataset.torchvision_sets import idx_source, load_official


def load(root: str, split: str) -> ImageData:
    """Images (N, 1, 28, 28) and digits 0..9; N = 55,000 train, 5,000 val, 10,000 test.

    Test is the official test set.
    """
    return load_official(idx_source(MNIST, "mnist"), root, split)
