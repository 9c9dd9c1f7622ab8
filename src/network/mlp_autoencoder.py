"""Fully connected encoder and decoder for autoencoders of small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from src.errors import require
from src.network.layers import MAX_WIDTH, check_count, check_shape, choose, initialize

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU}


class MLPEncoder(nn.Module):
    """Features of a flattened image; ``hidden=(200, 200), activation="tanh"`` is Burda et al. 2016 (IWAE), section 5.

    shape: (C, H, W). hidden: widths of the layers, each followed by the activation: silu | tanh | relu.

    Attribute ``num_features``: length of the output, ``hidden[-1]``; the model puts its own linear head (code, or mean
    and log_var) on top. Raises ``ConfigError`` for values outside these ranges.
    """

    num_features: int

    def __init__(
        self, shape: Sequence[int], hidden: Sequence[int] = (512, 256), activation: str = "silu"
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), *_hidden_layers(math.prod(check_shape(shape)), hidden, activation)
        )
        self.num_features = hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> features (B, num_features)."""
        return self.layers(
            (x + 1) / 2
        )  # black is 0, as in the IWAE: else every dark pixel moves its weights, always


class MLPDecoder(nn.Module):
    """From a latent to the mean or the logits of an image; the counterpart of ``MLPEncoder``.

    latent_dim: length of the latent. shape: (C, H, W). hidden, activation: as for the encoder, in the decoder's order.

    Raises ``ConfigError`` for values outside these ranges.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        hidden: Sequence[int] = (256, 512),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim, MAX_WIDTH)
        shape = check_shape(shape)
        layers = _hidden_layers(latent_dim, hidden, activation)
        self.layers = nn.Sequential(
            *layers, initialize(nn.Linear(hidden[-1], math.prod(shape))), nn.Unflatten(1, shape)
        )

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_dim) -> (B, C, H, W), unbounded."""
        return self.layers(z)


def _hidden_layers(inputs: int, hidden: Sequence[int], activation: str) -> list[nn.Module]:
    sensible = len(hidden) >= 1 and min(hidden) >= 1 and max(hidden) <= MAX_WIDTH
    require(
        sensible,
        "hidden",
        list(hidden),
        f"must be one or more widths, each at least 1 and at most {MAX_WIDTH}",
    )
    make_activation = choose(ACTIVATIONS, "activation", activation)
    return [
        layer
        for fan_in, fan_out in pairwise([inputs, *hidden])
        for layer in (initialize(nn.Linear(fan_in, fan_out)), make_activation())
    ]
