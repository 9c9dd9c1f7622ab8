"""The loss of a blank image: what it consists of, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.model.base import GenerativeModel
from src.noise import generator


@torch.no_grad()
def blank_losses(model: GenerativeModel, image_shape: Sequence[int]) -> dict[str, Tensor]:
    """Losses of one image of zeros, with each part in the mode in which it was."""
    device = next((weight.device for weight in model.parameters()), None)
    image = torch.zeros(1, *image_shape, device=device)
    training = [part for part in model.modules() if part.training]
    losses = model.eval().loss(image, None, [generator("check")])
    for part in training:
        part.training = True
    return losses


def flops_per_image(model: GenerativeModel, image_shape: Sequence[int]) -> int:
    """Floating-point operations of the loss of one image, of products of matrices alone.

    A multiplication and an addition are two. Forward and backward together take three times as
    many (Kaplan et al. 2020, table 1; Chowdhery et al. 2022, appendix B).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        blank_losses(model, image_shape)
    return counter.get_total_flops()
