"""U-Net that predicts from a noisy image and its time step, for diffusion models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import require
from src.network.layers import (
    UPSAMPLES,
    Attention,
    ResidualBlock,
    TimeEmbedding,
    check_dropout,
    check_norm,
    check_shape,
    check_widths,
    choose,
    conv3x3,
    make_norm,
    make_upsample,
)


class UNet(nn.Module):
    """U-Net of Ho et al. 2020 (DDPM, appendix B).

    The defaults on 3x32x32 are their CIFAR-10 network (35.7 M).

    Arguments:
        shape: (C, H, W) of the images; H and W must be divisible by 2 ** (len(channel_mult) - 1).
        channels: at least 2 (time needs a sine and a cosine).
        channel_mult: level i has channels * channel_mult[i].
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: levels whose larger side is listed get self-attention (the middle
            always has it); a listed size that this network never reaches is ignored, so that one
            YAML serves many image sizes.
        dropout: in [0, 1), before the second convolution of every residual block.
        norm: group | batch | instance | layer.
        upsample: nearest | bilinear | bicubic | transposed.
        num_heads: attention heads; must divide the channels where there is attention.

    A new network outputs exactly 0. Raises ``ConfigError`` for values outside these ranges.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        norm: str = "group",
        upsample: str = "nearest",
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        widths = check_widths(channels, channel_mult, num_blocks)
        require(channels >= 2, "channels", channels, "must be at least 2")
        sizes = _level_sizes(shape, len(widths))
        check_norm(norm, sizes[-1])
        check_dropout(dropout)
        choose(UPSAMPLES, "upsample", upsample)  # also where a single level needs none
        block = partial(
            _Block, norm=norm, dropout=dropout, num_heads=num_heads, time_dim=4 * channels
        )
        attended = [max(size) in attention_resolutions for size in sizes]
        down, up = _block_inputs(channels, widths, num_blocks)
        self.time = TimeEmbedding(channels, 4 * channels)
        self.enter = nn.ModuleList([conv3x3(shape[0], channels)])
        self.enter.extend(conv3x3(width, width, stride=2) for width in widths[:-1])
        self.down = _levels(block, down, widths, attended)
        self.middle = nn.ModuleList(block(widths[-1], widths[-1], has) for has in (True, False))
        self.up = _levels(block, up, widths[::-1], attended[::-1])
        self.leave = nn.ModuleList(make_upsample(upsample, width) for width in widths[:0:-1])
        self.leave.append(nn.Identity())
        self.norm = make_norm(norm, widths[0])
        self.output = conv3x3(widths[0], shape[0], gain=0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W) and its time t (B,), int or float -> (B, C, H, W), unbounded."""
        time = self.time(t)
        h = x
        skips = []
        for enter, blocks in zip(self.enter, self.down, strict=True):
            h = enter(h)
            skips.append(h)
            for block in blocks:
                h = block(h, time)
                skips.append(h)
        for block in self.middle:
            h = block(h, time)
        for blocks, leave in zip(self.up, self.leave, strict=True):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), time)
            h = leave(h)
        return self.output(F.silu(self.norm(h)))


class _Block(nn.Module):
    """Residual block, followed by self-attention if ``attention``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        attention: bool,
        norm: str,
        dropout: float,
        num_heads: int,
        time_dim: int,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, norm, dropout, time_dim)
        self.attention = Attention(out_channels, norm, num_heads) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.residual(x, time))


def _levels(
    block: Callable[..., nn.Module],
    inputs: list[list[int]],
    widths: list[int],
    attended: list[bool],
) -> nn.ModuleList:
    """The blocks of every level: their input channels, the width and whether there is attention."""
    levels = nn.ModuleList()
    for ins, out, attention in zip(inputs, widths, attended, strict=True):
        levels.append(nn.ModuleList(block(width, out, attention) for width in ins))
    return levels


def _block_inputs(
    channels: int, widths: list[int], num_blocks: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Input channels of every block, level by level: on the way down, and on the way up.

    The way up begins at the last level.
    """
    down, up, skips = [], [], []
    width = channels
    for out in widths:
        down.append([width] + [out] * (num_blocks - 1))
        # Every output on the way down is a skip: that of the layer that enters the level, then
        # those of its blocks.
        skips += [width] + [out] * num_blocks
        width = out
    for out in widths[::-1]:
        below = [width] + [out] * num_blocks
        up.append([channels + skips.pop() for channels in below])
        width = out
    return down, up


def _level_sizes(shape: Sequence[int], num_levels: int) -> list[tuple[int, int]]:
    """(H, W) of every level, halved exactly from one to the next.

    Raises ``ConfigError`` with the nearest sizes for which that is possible.
    """
    _, height, width = check_shape(shape)
    factor = 2 ** (num_levels - 1)
    below = f"{height // factor * factor}x{width // factor * factor}"
    above = f"{-(-height // factor) * factor}x{-(-width // factor) * factor}"
    would_do = above if min(height, width) < factor else f"{below} or {above}"
    fits = height % factor == width % factor == 0
    problem = f"is not divisible by {factor} ({num_levels - 1} down-samplings)"
    way_out = f"use {would_do}, or fewer channel_mult levels"
    require(fits, "shape", tuple(shape), f"image size {height}x{width} {problem}: {way_out}")
    return [(height >> level, width >> level) for level in range(num_levels)]
