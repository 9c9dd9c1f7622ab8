"""Sprites with known factors, drawn on the spot, after dSprites (Matthey et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.dataset.base import ImageData, check_split, fixed_split
from src.errors import require, require_count

FACTORS = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (3, 4, 8, 8, 8)  # dSprites: (3, 6, 40, 32, 32)
RADIUS = 0.4  # of the circle around a sprite of scale 1; the image spans [-1, 1]: none is ever cut
CHUNK = 2**18  # pixels drawn at a time
MAX_PIXELS = 2**32  # of all images together, one byte each: dSprites has 3.0e9


def load(
    root: str | None, split: str, image_size: int = 32, factor_sizes: Sequence[int] = FACTOR_SIZES
) -> ImageData:
    """White sprites on black (N, 1, image_size, image_size) with their factors (N, 5).

    Labels are the shape: square, ellipse, heart. The grid of all factors is cut 80/10/10 by a fixed
    permutation. Orientation spans [0, 2 pi) for every shape as in dSprites, so a square looks the
    same after each quarter turn and an ellipse after each half: pictures that are equal for this
    reason fall into the same split. ``root`` is not used.
    """
    check_split(split)
    _check(image_size, factor_sizes)
    factors = torch.cartesian_prod(*(torch.arange(size) for size in factor_sizes))
    _, picture = _distinct(factors, factor_sizes).unique(dim=0, return_inverse=True)
    num = int(picture.max()) + 1
    chosen = fixed_split("shapes", num, num_val=num // 10, num_test=num // 10, split=split)
    factors = factors[torch.isin(picture, chosen)]
    images = render(factors, image_size, factor_sizes)
    return ImageData(images, labels=factors[:, 0].clone(), factors=factors)


def render(
    factors: Tensor, image_size: int = 32, factor_sizes: Sequence[int] = FACTOR_SIZES
) -> Tensor:
    """Draw sprites: factors (N, 5) long -> uint8 (N, 1, image_size, image_size), anti-aliased.

    scale goes from 0.5 to 1; orientation k of n is 2 pi k / n, turning from x (right) to y (down);
    x and y place the sprite's centre of mass.
    """
    _check(image_size, factor_sizes)
    images = torch.empty(len(factors), 1, image_size, image_size, dtype=torch.uint8)
    step = max(1, CHUNK // image_size**2)
    for start in range(0, len(factors), step):
        rows = slice(start, start + step)
        images[rows, 0] = _draw(factors[rows], image_size, factor_sizes)
    return images


def _draw(factors: Tensor, image_size: int, factor_sizes: Sequence[int]) -> Tensor:
    """Grey values (N, image_size, image_size): 255 times the covered fraction of each pixel."""
    shape, scale, turn, x, y = factors.unbind(1)
    _, num_scales, num_turns, num_x, num_y = factor_sizes
    size = (RADIUS * _levels(0.5, 1, num_scales)[scale]).view(-1, 1, 1)
    angle = (2 * math.pi / num_turns * turn).view(-1, 1, 1)
    pixels = (2 * torch.arange(image_size) + 1) / image_size - 1  # centres, in [-1, 1]
    right = pixels.view(1, 1, -1) - _levels(RADIUS - 1, 1 - RADIUS, num_x)[x].view(-1, 1, 1)
    down = pixels.view(1, -1, 1) - _levels(RADIUS - 1, 1 - RADIUS, num_y)[y].view(-1, 1, 1)
    u = (right * angle.cos() + down * angle.sin()) / size
    v = (down * angle.cos() - right * angle.sin()) / size
    distance = torch.empty_like(u)
    for number, sprite in enumerate(SPRITES):
        rows = shape == number
        distance[rows] = sprite(u[rows], v[rows])
    in_pixels = distance * size * (image_size / 2)
    return ((0.5 - in_pixels).clamp(0, 1) * 255).round().to(torch.uint8)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - math.sqrt(0.5)


def _ellipse(u: Tensor, v: Tensor, minor: float = 0.6) -> Tensor:
    """Distance to first order, level / |gradient of level|: exact at the edge, where it matters."""
    level = torch.hypot(u, v / minor)
    return (level - 1) * level / torch.hypot(u, v / minor**2).clamp(min=1e-6)


def _heart(u: Tensor, v: Tensor, tip: float = 0.65666) -> Tensor:
    """A square on its corner and two half discs.

    In (p, q): tip (0, 0), notch (0, 1), centre of mass (0, ``tip``).
    """
    p = (u * tip).abs()
    q = tip - v * tip  # v points down
    disc = torch.hypot(p - 0.25, q - 0.75) - math.sqrt(2) / 4
    along = (p + q).clamp(min=0) / 2
    to_edge = torch.minimum(torch.hypot(p, q - 1), torch.hypot(p - along, q - along))
    edge = to_edge * (p - q).sign()
    return torch.where(p + q > 1, disc, edge) / tip


# Signed distance to the outline at (u, v), negative inside; centre of mass at (0, 0), circumscribed
# circle of radius 1.
SPRITES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_square, _ellipse, _heart)
SYMMETRY = torch.tensor([4, 2, 1])  # turns of 360 degrees / SYMMETRY leave the sprite as it is


def _distinct(factors: Tensor, factor_sizes: Sequence[int]) -> Tensor:
    """Factors with the orientation replaced by the first one that gives the same picture."""
    num_turns = torch.tensor(factor_sizes[2])
    period = num_turns // torch.gcd(num_turns, SYMMETRY[factors[:, 0]])
    distinct = factors.clone()
    distinct[:, 2] %= period
    return distinct


def _levels(low: float, high: float, num: int) -> Tensor:
    """``num`` evenly spaced values from low to high; their middle if there is only one."""
    return torch.linspace(low, high, num) if num > 1 else torch.tensor([(low + high) / 2])


def _check(image_size: int, factor_sizes: Sequence[int]) -> None:
    require_count("image_size", image_size, least=8)
    positive = len(factor_sizes) == len(FACTORS) and min(factor_sizes) >= 1
    known = positive and factor_sizes[0] <= len(SPRITES)
    numbers = f"{len(FACTORS)} integers of at least 1 ({', '.join(FACTORS)})"
    allowed = f"{numbers}, with at most {len(SPRITES)} shapes"
    require(known, "factor_sizes", list(factor_sizes), allowed)
    num = math.prod(factor_sizes)
    fits = num * image_size**2 <= MAX_PIXELS
    allowed = f"must keep all {num} images (factor_sizes) below 4 GiB"
    require(fits, "image_size", image_size, allowed)
