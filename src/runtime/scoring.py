"""Likelihood of a model on real images, on one scale: bits/dim of 8-bit values, or nats of binarised images."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from src.errors import require
from src.metric.base import Measurement
from src.model.base import CanScore, Effort, Scores
from src.noise import generators
from src.runtime.data import ImageDataModule
from src.runtime.ranks import share_work

log = logging.getLogger(__name__)


class Scoring:
    """Estimates of log p(x) over ``num_images`` of the test split, evenly spaced (null: all), mean and standard error.

    batch_size: images per forward pass. The others: see ``src.model.base.Effort``.
    """

    def __init__(
        self,
        num_images: int | None = None,
        batch_size: int = 100,
        importance_samples: int = 100,
        chunk: int = 50,
        timesteps: int | None = 100,
        flow_steps: int | None = None,
    ) -> None:
        require(num_images is None or num_images >= 2, "num_images", num_images, "must be >= 2, or null for all")
        require(batch_size >= 1, "batch_size", batch_size, "must be >= 1")
        self.num_images, self.batch_size = num_images, batch_size
        self.effort = Effort(importance_samples, chunk, timesteps, flow_steps)

    @torch.no_grad()
    def scores(self, model: CanScore, data: ImageDataModule, device: torch.device) -> Scores:
        """All estimates, per image in the order of the split; the work is shared by the ranks."""
        size = len(data.splits["test"])
        num = min(size, self.num_images or size)

        def of_block(block: range) -> Scores:
            batch = data.batch("test", [i * size // num for i in block])
            return _to_cpu(model.score(batch.x.to(device), self.effort, generators(batch.seeds)))

        return _joined(share_work(num, self.batch_size, of_block, "likelihood"))


def measurements(scores: Scores, model: CanScore, data: ImageDataModule) -> dict[str, Measurement]:
    """Named numbers: ``bits_per_dim_vlb_large``, or ``nats_dynamic_iwae_100`` where the images are binarised.

    Both are negative log-likelihoods: lower is better. Parts (rate, distortion) are nats per image.
    """
    dimensions = math.prod(data.splits["test"].image_shape)
    context = {"split": "test", "n_images": len(next(iter(scores.log_likelihood.values())))}
    if model.discrete_scale == "bits":
        prefix, unit = f"nats_{data.binarize}", 1.0
        context |= {"unit": "nats per image", "values": f"bits ({data.binarize} binarisation), not on the 8-bit scale"}
    else:
        prefix, unit = "bits_per_dim", dimensions * math.log(2)
        context |= {"unit": "bits/dim", "values": "8-bit, bins integrated exactly (no dequantisation noise)"}
    found = {
        f"{prefix}_{name}": _mean(-value / unit).within(**context, estimate=_kind(name))
        for name, value in scores.log_likelihood.items()
    }
    of_image = {name: value for name, value in scores.parts.items() if value.dim() == 1}
    nats = {name: _mean(value).within(**context | {"unit": "nats per image"}) for name, value in of_image.items()}
    return found | nats


def _kind(name: str) -> str:
    solver = ", up to the error of the ODE solver" if name == "flow" else ""
    return f"upper bound of the negative log-likelihood{solver}"


def _mean(values: Tensor) -> Measurement:
    """Mean over images and its standard error; none where any value is not finite."""
    bad = int((~values.isfinite()).sum())
    if bad:
        return Measurement(None, reason=f"{bad} of {len(values)} images have no finite likelihood")
    values = values.double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Measurement(float(values.mean()), error, "standard error over images")


def _to_cpu(scores: Scores) -> Scores:
    likelihoods, parts = (
        {name: value.cpu() for name, value in values.items()} for values in (scores.log_likelihood, scores.parts)
    )
    return Scores(likelihoods, parts, None if scores.times is None else scores.times.cpu())


def _joined(blocks: list[Scores]) -> Scores:
    likelihoods, parts = (
        {name: torch.cat([getattr(block, kind)[name] for block in blocks]) for name in getattr(blocks[0], kind)}
        for kind in ("log_likelihood", "parts")
    )
    times = None if blocks[0].times is None else torch.cat([block.times for block in blocks])
    return Scores(likelihoods, parts, times)
