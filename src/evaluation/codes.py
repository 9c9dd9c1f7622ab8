"""Quality of a model's codes: what its latents carry, and how they match factors that are known."""

from __future__ import annotations

import torch
from torch import Tensor

from src.dataset.base import SPLITS
from src.metric.base import Measurement
from src.metric.disentanglement import Disentanglement
from src.metric.latents import collapse_warning, latent_quality
from src.model.base import CanEncode, HasPosterior
from src.parallel.ranks import share_work
from src.training.data import ImageDataModule

BATCH = 256


@torch.no_grad()
def posterior_quality(
    model: HasPosterior, data: ImageDataModule, device: torch.device
) -> tuple[dict[str, Measurement], str]:
    """Active units and KL of q(z | x) over the test split, and a warning or "".

    It warns of a collapsed posterior. Raises ValueError where the posterior is not finite.
    """

    def of_block(block: range) -> tuple[Tensor, Tensor]:
        posterior = model.posterior(data.batch("test", block).x.to(device))
        return posterior.mean.cpu(), posterior.log_var.cpu()

    parts = share_work(len(data.splits["test"]), BATCH, of_block)
    mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
    measured = latent_quality(mean, log_var)
    found = {name: number.within(split="test") for name, number in measured.items()}
    return found, collapse_warning(mean, log_var)


@torch.no_grad()
def disentanglement(
    model: CanEncode, data: ImageDataModule, device: torch.device
) -> dict[str, Measurement]:
    """How the codes match the known factors, over all splits as in disentanglement_lib."""
    codes = torch.cat([_codes(model, data, split, device) for split in SPLITS])
    factors = torch.cat([data.splits[split].factors for split in SPLITS])
    measured = Disentanglement()(codes, factors)
    return {name: number.within(split="train, val and test") for name, number in measured.items()}


def _codes(model: CanEncode, data: ImageDataModule, split: str, device: torch.device) -> Tensor:
    def of_block(block: range) -> Tensor:
        return model.encode(data.batch(split, block).x.to(device)).cpu()

    return torch.cat(share_work(len(data.splits[split]), BATCH, of_block))
