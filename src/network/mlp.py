"""Multilayer perceptron that predicts from a noisy vector or small image and its time step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import require_count
from src.network.layers import (
    MAX_DEPTH,
    MAX_WIDTH,
    TimeEmbedding,
    check_dropout,
    check_shape,
    initialize,
)


class MLP(nn.Module):
    """Residual perceptron for diffusion of vectors, codes and small images.

    Blocks of Ho et al. 2020 (appendix B) with linear layers for convolutions.

    Arguments:
        shape: (C, H, W) of the images, which are flattened.
        hidden: width, at least 2 (time needs a sine and a cosine).
        num_layers: residual blocks, each of two linear layers.
        dropout: in [0, 1), before the second of them.

    A new network outputs exactly 0. Raises ``ConfigError`` for values outside these ranges.
    """

    def __init__(
        self, shape: Sequence[int], hidden: int = 512, num_layers: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(check_shape(shape))
        require_count("hidden", hidden, MAX_WIDTH, least=2)
        require_count("num_layers", num_layers, MAX_DEPTH)
        check_dropout(dropout)
        self.time = TimeEmbedding(hidden, hidden)
        self.input = initialize(nn.Linear(size, hidden))
        self.blocks = nn.ModuleList(_Block(hidden, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden)
        self.output = initialize(nn.Linear(hidden, size), gain=0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W) and its time t (B,), int or float -> (B, C, H, W), unbounded."""
        time = self.time(t)
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        return self.output(F.silu(self.norm(h))).view(x.shape)


class _Block(nn.Module):
    """Norm, SiLU, linear, + time, norm, SiLU, dropout, linear; with a shortcut around them.

    The last linear layer is zero-initialised.
    """

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.linear1 = initialize(nn.Linear(hidden, hidden))
        self.time = initialize(nn.Linear(hidden, hidden))
        self.dropout = nn.Dropout(dropout)
        self.linear2 = initialize(nn.Linear(hidden, hidden), gain=0)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.linear1(F.silu(self.norm1(x))) + self.time(time)
        return x + self.linear2(self.dropout(F.silu(self.norm2(h))))
