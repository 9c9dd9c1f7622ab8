"""Fully connected encoder and decoder for autoencoders of small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from src.errors import require, require_count
from src.network.layers import MAX_WIDTH, check_shape, choose, initialize

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU}


class MLPEncoder(nn.Module):
    """Features of a flattened image by linear layers.

    ``hidden=(200, 200), activation="tanh"`` is Burda et al. 2016 (IWAE), section 5. Attribute
    ``num_features``: length of the output, ``hidden[-1]``; the model puts its own linear head
    (code, or mean and log_var) on top.

    Arguments:
        shape: (C, H, W).
        hidden: widths of the layers, each followed by the activation.
        activation: silu | tanh | relu.

    Raises ``ConfigError`` for values outside these ranges.
    """

    num_features: int

    def __init__(
        self, shape: Sequence[int], hidden: Sequence[int] = (512, 256), activation: str = "silu"
    ) -> None:
        super().__init__()
        size = math.prod(check_shape(shape))
        self.layers = nn.Sequential(nn.Flatten(), *_hidden_layers(size, hidden, activation))
        self.num_features = hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> features (B, num_features)."""
        # Black is 0, as in the IWAE: else every dark pixel moves its weights, always.
        return self.layers((x + 1) / 2)


class MLPDecoder(nn.Module):
    """From a latent to the mean or the logits of an image; the counterpart of ``MLPEncoder``.

    Arguments:
        latent_dim: length of the latent.
        shape: (C, H, W).
        hidden, activation: as for the encoder, in the decoder's order.

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
        require_count("latent_dim", latent_dim, MAX_WIDTH)
        shape = check_shape(shape)
        layers = _hidden_layers(latent_dim, hidden, activation)
        output = initialize(nn.Linear(hidden[-1], math.prod(shape)))
        self.layers = nn.Sequential(*layers, output, nn.Unflatten(1, shape))

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_dim) -> (B, C, H, W), unbounded."""
        return self.layers(z)


def _hidden_layers(inputs: int, hidden: Sequence[int], activation: str) -> list[nn.Module]:
    sensible = len(hidden) >= 1 and min(hidden) >= 1 and max(hidden) <= MAX_WIDTH
    allowed = f"must be one or more widths, each at least 1 and at most {MAX_WIDTH}"
    require(sensible, "hidden", list(hidden), allowed)
    make_activation = choose(ACTIVATIONS, "activation", activation)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([inputs, *hidden]):
        layers.append(initialize(nn.Linear(fan_in, fan_out)))
        layers.append(make_activation())
    return layers
