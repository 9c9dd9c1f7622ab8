"""Keyed randomness: a random number is a pure function of a key, as (seed, "train", epoch, step).

No draw depends on rank, worker, device or on what was drawn before, so runs resume exactly and any
number of processes trains the same model. Two kinds of keys say what a batch draws: ``Seeds``, one
for each image, and ``Rows``, one for the whole global batch of an optimiser step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Key = tuple[int | str | float, ...]
Draw = Callable[[Tensor, torch.Generator | None], Tensor]  # fills a tensor

NUM_BLOCKS = 64  # of a global batch at most, each with a generator
BLOCK = 64  # images of a block at least


class RowGenerators:
    """Draws for the rows of a global batch: every block of them has a generator of its own.

    Blocks are a function of the size of the global batch alone. Those that hold a row of ours are
    drawn whole, and our rows are taken from them: a rank or a micro-batch draws the numbers that
    a single process would draw for its images, at the cost of its own images.
    """

    def __init__(self, key: Key, rows: range, total: int) -> None:
        self._key, self._rows, self._total = key, rows, total
        self._size = max(BLOCK, -(-total // NUM_BLOCKS))
        self._first = rows.start // self._size * self._size

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def _blocks(self) -> list[tuple[torch.Generator, int]]:
        """Generator and size of each; made when something is drawn."""
        starts = range(self._first, self._rows.stop, self._size)
        return [(generator(*self._key, at), min(self._size, self._total - at)) for at in starts]

    def fill(self, out: Tensor, draw: Draw) -> None:
        """Fill ``out``, one row for each of ours, with what ``draw`` puts into whole blocks."""
        num = sum(size for _, size in self._blocks)
        all_of_them = out if num == len(out) else out.new_empty(num, *out.shape[1:])
        start = 0
        for own, size in self._blocks:
            draw(all_of_them[start : start + size], own)
            start += size
        if all_of_them is not out:
            skipped = self._rows.start - self._first
            out.copy_(all_of_them[skipped : skipped + len(out)])


Generators = torch.Generator | Sequence[torch.Generator] | RowGenerators | None


@dataclass(frozen=True)
class Seeds:
    """What a batch draws where every image has a seed: in evaluation and sampling."""

    seeds: Sequence[int]

    @classmethod
    def of(cls, images: Iterable[int], *key: int | str) -> Seeds:
        """Of images by their number: the key of each is ``key`` and the number."""
        return cls([mix(*key, image) for image in images])

    def generators(self, *purpose: str) -> list[torch.Generator]:
        """One for each image; another purpose has other ones."""
        return generators([mix(seed, *purpose) if purpose else seed for seed in self.seeds])


@dataclass(frozen=True)
class Rows:
    """What a batch of training draws: rows first .. last - 1 of a global batch of ``total``."""

    key: Key
    first: int
    last: int
    total: int

    def generators(self, *purpose: str) -> RowGenerators:
        """Of these rows; another purpose has other ones."""
        return RowGenerators((*self.key, *purpose), range(self.first, self.last), self.total)


def mix(*key: int | str | float) -> int:
    """Stable 64-bit seed of a key: BLAKE2b of its representation.

    ``hash()`` differs between processes. torch's CPU generator uses the low 32 bits: among 50,000
    samples expect 0.3 pairs with the same noise.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(*key: int | str | float) -> torch.Generator:
    """CPU generator seeded by a key: its stream is the same on every machine, a GPU's is not."""
    return torch.Generator().manual_seed(mix(*key))


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image from its seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise of ``shape``, in ``dtype`` on ``device``.

    generator: None (torch's global one), one generator, a sequence with one per image
    (``len == shape[0]``): then image i's noise depends on its own generator alone, whatever the
    batch it is part of; or those of the rows of a global batch. Always drawn in float32 on the
    generator's device, so a cast or another device does not change the numbers. Raises ValueError
    for another number of generators.
    """
    return _drawn(_normal, shape, torch.float32, generator, device).to(dtype)


def rand(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1) of ``shape``, float32; ``generator`` as in ``randn``."""
    return _drawn(_uniform, shape, torch.float32, generator, device)


def randint(
    low: int,
    high: int,
    num: int,
    generator: Generators = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """``num`` integers uniform in low .. high - 1, (num,) long; ``generator`` as in ``randn``."""

    def draw(out: Tensor, own: torch.Generator | None) -> Tensor:
        return out.random_(low, high, generator=own)

    return _drawn(draw, (num,), torch.long, generator, device)


def _normal(out: Tensor, own: torch.Generator | None) -> Tensor:
    return out.normal_(generator=own)


def _uniform(out: Tensor, own: torch.Generator | None) -> Tensor:
    return out.uniform_(generator=own)


def _drawn(
    draw: Draw,
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: Generators,
    device: torch.device | str | None,
) -> Tensor:
    """Numbers of ``shape`` drawn where the generators are, moved to ``device``."""
    if generator is None or isinstance(generator, torch.Generator):
        where = generator.device if generator else device
        return _moved(draw(_empty(shape, dtype, device, where), generator), device)
    if len(generator) != shape[0]:
        found = f"{len(generator)} generators for {shape[0]} images"
        raise ValueError(f"{found}: give one per image, or a single one")
    out = _empty(shape, dtype, device, "cpu")
    if isinstance(generator, RowGenerators):
        generator.fill(out, draw)
    else:
        for row, own in zip(out, generator, strict=True):
            draw(row, own)
    return _moved(out, device)


def _empty(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str | None,
    where: torch.device | str | None,
) -> Tensor:
    """To be filled on ``where``: page-locked if it is then copied to a GPU, without a wait."""
    leaves = device is not None and torch.device(device).type == "cuda"
    pinned = leaves and torch.device(where).type == "cpu"
    return torch.empty(tuple(shape), dtype=dtype, device=where, pin_memory=pinned)


def _moved(numbers: Tensor, device: torch.device | str | None) -> Tensor:
    return numbers.to(device=device, non_blocking=True)
