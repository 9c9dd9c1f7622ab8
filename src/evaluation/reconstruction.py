"""Quality of reconstructions: how like the images of the test split they are, image by image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from src.errors import first_line, require
from src.metric.base import Measurement, mean_over_images
from src.metric.reconstruction import fit, per_image
from src.model.base import CanReconstruct
from src.parallel.ranks import share_work
from src.report.progress import shown
from src.training.data import ImageDataModule


class Reconstruction:
    """Pairwise image metrics of x and its reconstruction: means over images and standard errors.

    Both are in [0, 1], as x / 2 + 1 / 2, not rounded to 8 bits.

    Arguments:
        metrics: by the name of their number; a None in place of one switches it off.
        batch_size: images per forward pass.
    """

    def __init__(self, metrics: Mapping[str, Metric | None] | None, batch_size: int = 256) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "must be >= 1")
        self.metrics = {name: metric for name, metric in (metrics or {}).items() if metric}
        for name, metric in self.metrics.items():
            allowed = "must be a metric of torchmetrics"
            require(isinstance(metric, Metric), f"metrics.{name}", type(metric).__name__, allowed)
        self.batch_size = batch_size

    @torch.no_grad()
    def measure(
        self, model: CanReconstruct, data: ImageDataModule, device: torch.device
    ) -> dict[str, Measurement]:
        """All numbers, over the test split; the work is shared by the ranks.

        What a metric cannot measure is a null with its reason.
        """
        test = data.splits["test"]
        contexts = {name: fit(metric, test.image_shape) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.to(device)

        def of_block(block: range) -> dict[str, Tensor | str]:
            x = data.batch("test", block).x.to(device)
            output = model.reconstruct(x).float() / 2 + 0.5
            target = x / 2 + 0.5
            return {name: _values(metric, output, target) for name, metric in self.metrics.items()}

        parts = share_work(len(test), self.batch_size, of_block, shown("reconstruction"))
        context = {"split": "test", "n_images": len(test), "values": _scale(data)}
        measured = {}
        for name in self.metrics:
            values = [part[name] for part in parts]
            measured[name] = _pooled(name, values).within(**contexts[name], **context)
        return measured


def _values(metric: Metric, output: Tensor, target: Tensor) -> Tensor | str:
    """The values (B,), or why there are none."""
    try:
        return per_image(metric, output, target).cpu()
    except ValueError as error:
        return first_line(error)


def _pooled(name: str, parts: list[Tensor | str]) -> Measurement:
    reasons = [part for part in parts if isinstance(part, str)]
    if reasons:
        return Measurement(None, reason=reasons[0])
    return mean_over_images(torch.cat(parts), name)


def _scale(data: ImageDataModule) -> str:
    if data.binarize:
        return f"[0, 1], bits ({data.binarize} binarisation) and their expectations"
    return "[0, 1], reconstructions not rounded to 8 bits"
