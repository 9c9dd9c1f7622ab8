"""Likeness of reconstructions to their images by torchmetrics, one value per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from src.errors import is_out_of_memory

WINDOW, SIGMA = 11, 1.5  # of the structural similarity (Wang et al. 2004, section III.C)


@runtime_checkable
class FitsImages(Protocol):
    """A metric that depends on the shape of the images."""

    def fit(self, shape: Sequence[int]) -> dict[str, Any]:
        """Prepare for images (C, H, W); what the numbers depend on by that."""


def fit(metric: Metric, shape: Sequence[int]) -> dict[str, Any]:
    """Prepare a metric for images (C, H, W); the context of its numbers."""
    context: dict[str, Any] = {"metric": type(metric).__name__}
    data_range = getattr(metric, "data_range", None)
    if data_range is not None:
        context["data_range"] = data_range.item() if isinstance(data_range, Tensor) else data_range
    if isinstance(metric, PeakSignalNoiseRatio):
        context["unit"] = "dB"
    if isinstance(metric, StructuralSimilarityIndexMeasure):
        context |= _fit_window(metric, shape)
    return context | (metric.fit(shape) if isinstance(metric, FitsImages) else {})


def window(size: int) -> tuple[int, float]:
    """Width of the Gaussian window for images of ``size`` pixels across, and its sigma.

    The largest odd width up to 11 that fits; sigma is 1.5 for 11 and shrinks with it. torchmetrics
    makes a window of 2 floor(3.5 sigma + 0.5) + 1 pixels, which is this width.
    """
    width = min(WINDOW, size - 1 + size % 2)
    return width, SIGMA * width / WINDOW


def per_image(metric: Metric, output: Tensor, target: Tensor) -> Tensor:
    """The metric of each pair of images, (B,).

    Metrics that give one number for a batch get one pair at a time. Nothing is exchanged with other
    processes. Raises ValueError where there is no such number, for example of images that are too
    small.

    Arguments:
        metric: of torchmetrics, called with (output, target).
        output: reconstructions (B, C, H, W) in [0, 1].
        target: images (B, C, H, W) in [0, 1].
    """
    try:
        values = _measured(metric, output, target)
        if values.shape != target.shape[:1]:
            pairs = zip(output.split(1), target.split(1), strict=True)
            values = torch.stack([_measured(metric, *pair).reshape(()) for pair in pairs])
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(str(error)) from error
    return values


def _measured(metric: Metric, output: Tensor, target: Tensor) -> Tensor:
    try:
        found = metric(output, target)
    finally:
        metric.reset()
    if not isinstance(found, Tensor):
        raise ValueError(f"{type(metric).__name__} gives more than one number for a pair")
    return found


def _fit_window(
    metric: StructuralSimilarityIndexMeasure, shape: Sequence[int]
) -> dict[str, str | float]:
    if not metric.gaussian_kernel:
        return {"kernel": f"uniform {metric.kernel_size}"}
    width, sigma = window(min(shape[1:]))
    metric.sigma = min(metric.sigma, sigma) if isinstance(metric.sigma, int | float) else sigma
    width = 2 * int(3.5 * metric.sigma + 0.5) + 1
    return {"kernel": f"Gaussian {width} x {width}", "sigma": round(metric.sigma, 4)}
