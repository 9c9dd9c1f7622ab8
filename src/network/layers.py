"""Blocks that several networks share: norms, time embedding, residuals, attention, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import require, require_count

# Beyond these no memory would suffice.
MAX_WIDTH = 2**14
MAX_DEPTH = 1000
MAX_SIDE = 2**13

Value = TypeVar("Value")
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def choose(table: Mapping[str, Value], name: str, value: str) -> Value:
    """Entry of a closed set; ``ConfigError`` lists the set when ``value`` is not in it."""
    require(value in list(table), name, value, f"must be one of {', '.join(table)}")
    return table[value]


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Image shape (C, H, W) as a tuple; ``ConfigError`` unless all three are 1 to ``MAX_SIDE``."""
    shape = tuple(shape)
    sensible = len(shape) == 3 and min(shape) >= 1 and max(shape) <= MAX_SIDE
    allowed = f"must be (channels, height, width), each at least 1 and at most {MAX_SIDE}"
    require(sensible, "shape", shape, allowed)
    return shape


def check_widths(channels: int, channel_mult: Sequence[int], num_blocks: int) -> list[int]:
    """Channels of every level, ``channels * mult``.

    ``ConfigError`` unless all three arguments are at least 1 and no level is wider than
    ``MAX_WIDTH``.
    """
    require_count("channels", channels, MAX_WIDTH)
    require_count("num_blocks", num_blocks, MAX_DEPTH)
    positive = len(channel_mult) >= 1 and min(channel_mult) >= 1
    mults = list(channel_mult)
    require(positive, "channel_mult", mults, "must be one or more numbers, each at least 1")
    narrow = channels * max(mults) <= MAX_WIDTH
    require(narrow, "channel_mult", mults, f"must keep channels * mult <= {MAX_WIDTH}")
    return [channels * mult for mult in channel_mult]


def check_dropout(dropout: float) -> None:
    """``ConfigError`` unless 0 <= dropout < 1."""
    require(0 <= dropout < 1, "dropout", dropout, "must be at least 0 and below 1")


def _num_groups(channels: int) -> int:
    # A group of one channel would subtract whatever is constant over the image, the time embedding
    # above all: at least four channels in each, as in Karras et al. 2022. With 128 channels or more
    # these are the 32 groups of Ho et al.
    most = min(32, max(1, channels // 4))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(_num_groups(channels), channels),
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.GroupNorm(channels, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
}


def make_norm(norm: str, channels: int) -> nn.Module:
    """Normalisation of (B, C, H, W) with a learned scale and shift per channel.

    norm: group | batch | instance | layer. group: as many groups as the largest divisor of
    ``channels`` up to 32 that leaves four channels in each. layer: over (C, H, W).
    """
    return choose(NORMS, "norm", norm)(channels)


def check_norm(norm: str, smallest: tuple[int, int]) -> None:
    """``ConfigError`` for an unknown norm, or one that erases maps of the ``smallest`` size."""
    choose(NORMS, "norm", norm)
    # The only pixel minus its own mean is zero.
    survives = norm != "instance" or max(smallest) > 1
    harm = "would erase the 1x1 features of the last level: use group, or fewer levels"
    require(survives, "norm", norm, harm)


def initialize(layer: Layer, gain: float = 1.0) -> Layer:
    """Glorot-uniform weights and zero biases, as in Ho et al. 2020 and in the IWAE.

    ``gain=0``: the output is 0.
    """
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """3x3 convolution that keeps the size; with ``stride=2`` a side n becomes ceil(n / 2)."""
    return initialize(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), gain)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of time (Vaswani et al. 2017, section 3.5).

    (B,) int or float -> (B, dim) float32: sin(t w_i), then cos(t w_i), with w_i from 1 down to
    1 / 10000 in geometric steps, as in Ho et al. 2020; an odd ``dim`` is filled up with a zero.
    """
    half = dim // 2
    # Rebuilt on every call: a buffer would lose its precision with the first .half() or .bfloat16()
    # of the network.
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / max(half - 1, 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """Sinusoid and two-layer MLP (Ho et al. 2020, appendix B): t (B,) -> (B, out_dim).

    In the dtype of the parameters. The SiLU with which each residual block of Ho et al. begins its
    projection is applied here, once for all of them.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = initialize(nn.Linear(dim, out_dim))
        self.output = initialize(nn.Linear(out_dim, out_dim))

    def forward(self, t: Tensor) -> Tensor:
        """Time t (B,), int or float -> (B, out_dim)."""
        embedding = sinusoid(t, self.dim).to(self.hidden.weight.dtype)
        return F.silu(self.output(F.silu(self.hidden(embedding))))


class ResidualBlock(nn.Module):
    """Residual block of Ho et al. 2020: norm, SiLU, conv, + time, norm, SiLU, dropout, conv.

    The last convolution is zero-initialised. (B, in_channels, H, W), time (B, time_dim) ->
    (B, out_channels, H, W). ``time_dim=0``: a block without time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str = "group",
        dropout: float = 0.0,
        time_dim: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.time = initialize(nn.Linear(time_dim, out_channels)) if time_dim else None
        # Instance norm subtracts every per-channel constant, so a time embedding added before it
        # would have no effect.
        self.time_after_norm = norm == "instance"
        self.norm2 = make_norm(norm, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, gain=0)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = initialize(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, W), time (B, time_dim) if any -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        shift = 0 if self.time is None else self.time(time)[:, :, None, None]
        h = self.norm2(h) + shift if self.time_after_norm else self.norm2(h + shift)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map (Ho et al. 2020, appendix B).

    (B, C, H, W) -> the same shape; the residual output is zero-initialised. ``ConfigError`` unless
    ``num_heads`` divides ``channels``.
    """

    def __init__(self, channels: int, norm: str = "group", num_heads: int = 1) -> None:
        super().__init__()
        divides = num_heads >= 1 and channels % num_heads == 0
        allowed = f"must divide the {channels} channels of every attention layer"
        require(divides, "num_heads", num_heads, allowed)
        self.num_heads = num_heads
        self.norm = make_norm(norm, channels)
        self.qkv = initialize(nn.Conv2d(channels, 3 * channels, 1))
        self.output = initialize(nn.Conv2d(channels, channels, 1), gain=0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        split = (3, self.num_heads, channels // self.num_heads)
        qkv = self.qkv(self.norm(x)).reshape(batch, *split, height * width)
        # The fused kernels want channels last in memory; without the copy the slow path stores all
        # pairs of pixels.
        query, key, value = qkv.transpose(-1, -2).contiguous().unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(mixed.transpose(-1, -2).reshape(x.shape))


def _interpolate(mode: str) -> Callable[[int], nn.Module]:
    def make(channels: int) -> nn.Module:
        return nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), conv3x3(channels, channels))

    return make


def _transposed(channels: int) -> nn.Module:
    # A kernel of 4 at stride 2 covers every pixel equally often: no checkerboard.
    return initialize(nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1))


UPSAMPLES: dict[str, Callable[[int], nn.Module]] = {
    "nearest": _interpolate("nearest"),
    "bilinear": _interpolate("bilinear"),
    "bicubic": _interpolate("bicubic"),
    "transposed": _transposed,
}


def make_upsample(upsample: str, channels: int) -> nn.Module:
    """Doubles height and width.

    upsample: nearest | bilinear | bicubic (interpolation, then a 3x3 convolution) | transposed (a
    transposed convolution).
    """
    return choose(UPSAMPLES, "upsample", upsample)(channels)
