"""Likelihood of a model on real images, on one scale: bits/dim of 8-bit values, or nats of binarised images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from src.errors import require
from src.metric.base import Measurement, mean_over_images
from src.model.base import CanEstimate, CanScore, Effort, Scores
from src.noise import generators
from src.parallel.ranks import share_work
from src.report.progress import shown
from src.training.data import ImageDataModule

EFFORT = {  # first part of a name -> the effort that it depends on
    "iwae": "importance_samples",
    "vlb": "timesteps",
    "rate_": "timesteps",  # of a diffusion model; that of a VAE is exact
    "flow": "flow_steps",
}


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
        require(
            num_images is None or num_images >= 2,
            "num_images",
            num_images,
            "must be >= 2, or null for all",
        )
        require(batch_size >= 1, "batch_size", batch_size, "must be >= 1")
        self.num_images, self.batch_size = num_images, batch_size
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
            x, noise = batch.x.to(device), generators(batch.seeds)
            if not isinstance(model, CanEstimate):
                return Scores({"log_likelihood": model.log_likelihood(x, noise).cpu()})
            return _to_cpu(model.score(x, self.effort, noise))

        return _joined(share_work(num, self.batch_size, of_block, shown("likelihood")))

    def measurements(
        self, scores: Scores, model: CanScore | CanEstimate, data: ImageDataModule
    ) -> dict[str, Measurement]:
        """Named numbers: ``bits_per_dim_vlb_large``, or ``nats_dynamic_iwae_100`` where the images are binarised.

        Both are negative log-likelihoods: lower is better. ``bits_per_dim`` (``nats_dynamic``) is the lowest of them,
        by which models compare; its context says which. The flow's is left out, as its solver errs to either side.
        Parts (rate, distortion) are nats per image. What a model without a discrete scale says of itself is passed on
        as ``log_likelihood``.
        """
        context = {"split": "test", "n_images": len(next(iter(scores.log_likelihood.values())))}
        in_nats = context | {"unit": "nats per image"}
        if not isinstance(model, CanEstimate):
            own = in_nats | {"estimate": "log_likelihood", "likelihood_kind": model.likelihood_kind}
            found = {name: _mean(value) for name, value in scores.log_likelihood.items()}
            return {
                name: number.within(**own, values=model.likelihood_kind)
                for name, number in found.items()
            }
        prefix, unit, scale = _scale(model, data)
        found = {
            name: _mean(-value / unit).within(
                **context,
                **scale,
                **self._effort_of(name),
                estimate=name,
                likelihood_kind=_kind(name),
            )
            for name, value in scores.log_likelihood.items()
        }
        bounds = [number for name, number in found.items() if name != "flow"]
        bounds = [number for number in bounds if number.value is not None] or bounds
        best = {prefix: min(bounds, key=lambda number: number.value or 0.0)} if bounds else {}
        parts = {
            name: _mean(value).within(**in_nats, **self._effort_of(name))
            for name, value in scores.parts.items()
            if value.dim() == 1
        }
        return best | {f"{prefix}_{name}": number for name, number in found.items()} | parts

    def _effort_of(self, name: str) -> dict[str, Any]:
        """The effort that an estimate or a part depends on."""
        settings = [setting for start, setting in EFFORT.items() if name.startswith(start)]
        return {
            setting: "all" if (value := getattr(self.effort, setting)) is None else value
            for setting in settings
        }


def _scale(model: CanEstimate, data: ImageDataModule) -> tuple[str, float, dict[str, str]]:
    """How numbers on the model's scale are called, nats per unit of them, and context."""
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
    likelihoods, parts = (
        {name: value.cpu() for name, value in values.items()}
        for values in (scores.log_likelihood, scores.parts)
    )
    return Scores(likelihoods, parts, None if scores.times is None else scores.times.cpu())


def _joined(blocks: list[Scores]) -> Scores:
    likelihoods, parts = (
        {
            name: torch.cat([getattr(block, kind)[name] for block in blocks])
            for name in getattr(blocks[0], kind)
        }
        for kind in ("log_likelihood", "parts")
    )
    times = None if blocks[0].times is None else torch.cat([block.times for block in blocks])
    return Scores(likelihoods, parts, times)
