"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8, no download.

They are the test part of UCI's Optical Recognition of Handwritten Digits.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from src.dataset.base import ImageData, check_split, fixed_split


def load(root: str | None, split: str) -> ImageData:
    """Images (N, 1, 8, 8), values 0..16 spread over 0..255; N = 1257 train, 180 val, 360 test.

    There is no official split: this one is fixed. ``root`` is not used, the images come with
    scikit-learn.
    """
    check_split(split)
    table = torch.from_numpy(np.loadtxt(_file(), delimiter=","))  # 64 pixels, then the label
    grey = table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)
    images = grey.round().to(torch.uint8)
    index = fixed_split("digits", len(images), num_val=180, num_test=360, split=split)
    return ImageData(images, table[:, -1].long()).subset(index)


def _file() -> Path:
    """Where scikit-learn keeps them: to import it takes ten times as long as to read them."""
    package = find_spec("sklearn").submodule_search_locations[0]
    return Path(package, "datasets", "data", "digits.csv.gz")
