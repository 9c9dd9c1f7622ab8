"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8, no download.

They are the test part of UCI's Optical Recognition of Handwritten Digits.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from src.dataset.base import ImageData, check_split, fixed_split


def load(root: str | None, split: str) -> ImageData:
    """Images (N, 1, 8, 8), values 0..16 spread over 0..255; N = 1257 train, 180 val, 360 test.

    There is no official split: this one is fixed. ``root`` is not used, the images come with
    scikit-learn.
    """
    check_split(split)
    digits = load_digits()
    grey = torch.from_numpy(digits.images) * (255 / 16)
    images = grey.round().to(torch.uint8).unsqueeze(1)
    index = fixed_split("digits", len(images), num_val=180, num_test=360, split=split)
    return ImageData(images, torch.from_numpy(digits.target).long()).subset(index)
