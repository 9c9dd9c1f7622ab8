"""Images as pictures for people: grids and film strips, small images enlarged without smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.files import atomic_path
from src.report.figure import blank, picture_of

CELL = 48  # pixels: images smaller than this are enlarged by a whole factor
TITLES = (  # of the rows of a film strip
    "state $x_t$: noise (left) becomes image (right)",
    "the network's estimate of $x_0$ at that time",
)


def save_png(picture: np.ndarray, target: Path) -> None:
    """Write a picture (H, W) or (H, W, 3) uint8 atomically; raises StorageError."""
    with atomic_path(target) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 (N, C, H, W) -> one RGB picture (H', W', 3) uint8.

    columns: images in a row (default: about square).
    """
    from torchvision.utils import make_grid  # slow to import, and no picture is drawn at the start

    images = images.cpu()
    columns = columns or max(1, round(len(images) ** 0.5))
    factor = max(1, -(-CELL // images.shape[-1]))
    large = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    tiled = make_grid(large, nrow=columns, padding=max(2, factor // 2), pad_value=96)
    return tiled.permute(1, 2, 0).numpy()


def film_strip(
    times: Sequence[int], states: Tensor, estimates: Tensor, frames: int = 10
) -> np.ndarray:
    """A denoising run as an RGB picture (H, W, 3) uint8: states x_t above, estimates of x_0 below.

    Arguments:
        times: T ... 0, of which some are shown, a column each.
        states: uint8 (len(times), N, C, H, W), a row of the strip for each of the N images.
        estimates: likewise.
        frames: most columns.
    """
    shown = sorted({round(i) for i in np.linspace(0, len(times) - 1, min(frames, len(times)))})
    labels = [times[i] for i in shown]
    figure = blank(0.62 * len(shown) + 0.2, 0.62 * 2 * states.shape[1] + 1.3)
    for axes, title, tensor in zip(figure.subplots(2, 1), TITLES, (states, estimates), strict=True):
        rows = torch.stack([tensor[i] for i in shown], dim=1).flatten(0, 1)
        picture = grid(rows, columns=len(shown))
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        width = picture.shape[1] / len(shown)
        centres = [width * (i + 0.5) for i in range(len(shown))]
        axes.set_xticks(centres, labels, fontsize=8)
        axes.set_xlabel("t", fontsize=8, labelpad=1)
        axes.set_yticks([])
    return picture_of(figure)
