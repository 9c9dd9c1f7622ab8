"""Likelihood of real images on one scale: bits/dim of 8-bit values, or nats of binary images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from src.errors import require
from src.metric.base import Measurement, mean_over_images
from src.model.base import CanEstimate, CanScore, Effort, Scores
from src.parallel.ranks import share_work
from src.report.progress import shown
from src.training.data import ImageDataModule

EFFORT = {  # first part of a name -> the effort that it depends on
    "iwae": "importance_samples",
    "vlb": "timesteps",
    "rate_": "timesteps",  # of a diffusion model; that of a VAE is exact
    "flow": "flow_steps",
}
IN_NATS = {"unit": "nats per image"}


class Scoring:
    """Estimates of log p(x) over images of the test split: mean and standard error.

    Arguments:
        num_images: how many, evenly spaced; null: all.
        batch_size: images per forward pass.
        importance_samples, chunk, timesteps, flow_steps: see ``src.model.base.Effort``.
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
        enough = num_images is None or num_images >= 2
        require(enough, "num_images", num_images, "must be >= 2, or null for all")
        require(batch_size >= 1, "batch_size", batch_size, "must be >= 1")
        self.num_images = num_images
        self.batch_size = batch_size
        self.effort = Effort(importance_samples, chunk, timesteps, flow_steps)

    @torch.no_grad()
    def scores(
        self, model: CanScore | CanEstimate, data: ImageDataModule, device: torch.device
    ) -> Scores:
        """All estimates, per image in the order of the split; the work is shared by the ranks.

        Of a model that has no ``score`` its own ``log_likelihood``.
        """
        size = len(data.splits["test"])
        num = min(size, self.num_images or size)

        def of_block(block: range) -> Scores:
            batch = data.batch("test", [i * size // num for i in block])
            x = batch.x.to(device)
            noise = batch.noise.generators()
            if not isinstance(model, CanEstimate):
                return Scores({"log_likelihood": model.log_likelihood(x, noise).cpu()})
            return _to_cpu(model.score(x, self.effort, noise))

        return _joined(share_work(num, self.batch_size, of_block, shown("likelihood")))

    def measurements(
        self, scores: Scores, model: CanScore | CanEstimate, data: ImageDataModule
    ) -> dict[str, Measurement]:
        """Named numbers: ``bits_per_dim_vlb_large``, or ``nats_dynamic_iwae_100`` of binary images.

        Both are negative log-likelihoods: lower is better. ``bits_per_dim`` (``nats_dynamic``) is
        the lowest of them, by which models compare; its context says which. The flow's is left
        out, as its solver errs to either side. Parts (rate, distortion) are nats per image. Of a
        model without a discrete scale, its own number is passed on as ``log_likelihood``.
        """
        if not isinstance(model, CanEstimate):
            return _densities(scores, model)
        prefix, unit, scale = _scale(model, data)
        found = {}
        for name, value in scores.log_likelihood.items():
            context = _images(scores) | scale | self._effort_of(name)
            context |= {"estimate": name, "likelihood_kind": _kind(name)}
            found[name] = _mean(-value / unit).within(**context)
        lowest = _lowest_bound(found)
        best = {} if lowest is None else {prefix: lowest}
        estimates = {f"{prefix}_{name}": number for name, number in found.items()}
        return best | estimates | self._parts(scores)

    def _parts(self, scores: Scores) -> dict[str, Measurement]:
        """Rate and distortion; not the terms over time."""
        found = {}
        for name, value in scores.parts.items():
            if value.dim() == 1:
                context = _images(scores) | IN_NATS | self._effort_of(name)
                found[name] = _mean(value).within(**context)
        return found

    def _effort_of(self, name: str) -> dict[str, Any]:
        """The effort that an estimate or a part depends on; where there is no limit, "all"."""
        found = {}
        for start, setting in EFFORT.items():
            if name.startswith(start):
                value = getattr(self.effort, setting)
                found[setting] = "all" if value is None else value
        return found


def _images(scores: Scores) -> dict[str, Any]:
    """The images that all numbers are of."""
    values = next(iter(scores.log_likelihood.values()))
    return {"split": "test", "n_images": len(values)}


def _densities(scores: Scores, model: CanScore) -> dict[str, Measurement]:
    """Numbers of a model without a discrete scale."""
    kind = model.likelihood_kind
    context = _images(scores) | IN_NATS
    context |= {"estimate": "log_likelihood", "likelihood_kind": kind, "values": kind}
    return {name: _mean(value).within(**context) for name, value in scores.log_likelihood.items()}


def _lowest_bound(found: dict[str, Measurement]) -> Measurement | None:
    """The tightest of the bounds; one without a value only where none has any."""
    bounds = [number for name, number in found.items() if name != "flow"]
    known = [number for number in bounds if number.value is not None]
    if known:
        return min(known, key=lambda number: number.value)
    return bounds[0] if bounds else None


def _scale(model: CanEstimate, data: ImageDataModule) -> tuple[str, float, dict[str, str]]:
    """The name of numbers on the model's scale, nats per unit of them, and context."""
    if model.discrete_scale == "bits":
        values = f"bits ({data.binarize} binarisation), not on the 8-bit scale"
        return f"nats_{data.binarize}", 1.0, {"unit": "nats per image", "values": values}
    values = "8-bit, bins integrated exactly (no dequantisation noise)"
    nats = math.prod(data.splits["test"].image_shape) * math.log(2)
    return "bits_per_dim", nats, {"unit": "bits/dim", "values": values}


def _kind(name: str) -> str:
    if "exact" in name:
        return "exact negative log-likelihood"
    solver = ", up to the error of the ODE solver" if name == "flow" else ""
    return f"upper bound of the negative log-likelihood{solver}"


def _mean(values: Tensor) -> Measurement:
    return mean_over_images(values, "likelihood")


def _to_cpu(scores: Scores) -> Scores:
    likelihoods = {name: value.cpu() for name, value in scores.log_likelihood.items()}
    parts = {name: value.cpu() for name, value in scores.parts.items()}
    times = None if scores.times is None else scores.times.cpu()
    return Scores(likelihoods, parts, times)


def _joined(blocks: list[Scores]) -> Scores:
    likelihoods = _concatenated([block.log_likelihood for block in blocks])
    parts = _concatenated([block.parts for block in blocks])
    times = None if blocks[0].times is None else torch.cat([block.times for block in blocks])
    return Scores(likelihoods, parts, times)


def _concatenated(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = {}
    for name in blocks[0]:
        found[name] = torch.cat([block[name] for block in blocks])
    return found
