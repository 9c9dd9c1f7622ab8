"""Convolutional encoder and decoder for autoencoders of images of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from src.errors import require_count
from src.network.layers import (
    MAX_WIDTH,
    ResidualBlock,
    check_norm,
    check_shape,
    check_widths,
    conv3x3,
    initialize,
    make_norm,
    make_upsample,
)


class ConvEncoder(nn.Module):
    """Features of an image by residual blocks (Ho et al. 2020, appendix B).

    Every level ends with a stride-2 convolution. Attribute ``num_features``: length of the output,
    the flattened feature map of the last level; the model puts its own linear head (code, or mean
    and log_var) on top.

    Arguments:
        shape: (C, H, W), any size: a side n becomes ceil(n / 2) at every level.
        channels, channel_mult: level i has channels * channel_mult[i].
        num_blocks: residual blocks per level.
        norm: group | batch | instance | layer.

    Raises ``ConfigError`` for values outside these ranges.
    """

    num_features: int

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        norm: str = "group",
    ) -> None:
        super().__init__()
        widths = check_widths(channels, channel_mult, num_blocks)
        last = _level_sizes(shape, len(widths))[-1]
        check_norm(norm, last)
        layers: list[nn.Module] = [conv3x3(shape[0], channels)]
        width = channels
        for out in widths:
            layers += _residual_blocks(width, out, num_blocks, norm)
            layers.append(conv3x3(out, out, stride=2))
            width = out
        self.layers = nn.Sequential(*layers, make_norm(norm, width), nn.SiLU(), nn.Flatten())
        self.num_features = width * math.prod(last)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> features (B, num_features)."""
        return self.layers(x)


class ConvDecoder(nn.Module):
    """Mirror image of ``ConvEncoder``: from a latent to the mean or the logits of an image.

    Arguments:
        latent_dim: length of the latent.
        shape: (C, H, W), any size: a side is doubled at every level and cropped to what the encoder
            had there.
        channels, channel_mult, num_blocks, norm: as for the encoder, in the encoder's order.
        upsample: nearest | bilinear | bicubic | transposed.

    Raises ``ConfigError`` for values outside these ranges.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        norm: str = "group",
        upsample: str = "nearest",
    ) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim, MAX_WIDTH)
        widths = check_widths(channels, channel_mult, num_blocks)
        *self.sizes, last = _level_sizes(shape, len(widths))
        check_norm(norm, last)
        self.start = (widths[-1], *last)
        self.input = initialize(nn.Linear(latent_dim, math.prod(self.start)))
        ins = widths[::-1]
        outs = [*widths[-2::-1], channels]
        self.upsamples = nn.ModuleList(make_upsample(upsample, width) for width in ins)
        self.blocks = nn.ModuleList(
            nn.Sequential(*_residual_blocks(width, out, num_blocks, norm))
            for width, out in zip(ins, outs, strict=True)
        )
        norm_of_output = make_norm(norm, channels)
        self.output = nn.Sequential(norm_of_output, nn.SiLU(), conv3x3(channels, shape[0]))

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_dim) -> (B, C, H, W), unbounded."""
        h = self.input(z).unflatten(1, self.start)
        levels = zip(self.sizes[::-1], self.upsamples, self.blocks, strict=True)
        for (height, width), upsample, block in levels:
            h = block(upsample(h)[:, :, :height, :width])
        return self.output(h)


def _residual_blocks(
    in_channels: int, out_channels: int, num_blocks: int, norm: str
) -> list[nn.Module]:
    ins = [in_channels] + [out_channels] * (num_blocks - 1)
    return [ResidualBlock(width, out_channels, norm) for width in ins]


def _level_sizes(shape: Sequence[int], num_levels: int) -> list[tuple[int, int]]:
    """(H, W) of the image and after each of the levels, every side halved and rounded up."""
    _, height, width = check_shape(shape)
    factors = [2**level for level in range(num_levels + 1)]
    return [(-(-height // factor), -(-width // factor)) for factor in factors]
