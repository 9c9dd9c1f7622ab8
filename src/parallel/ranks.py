"""Work on many images, cut into blocks that do not depend on how many processes share them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch.distributed as dist

from src.config.words import flat
from src.errors import ConfigError, ProjectError, first_line

T = TypeVar("T")
Progress = Callable[[list[range]], Iterator[range]]  # the same blocks, shown as they are done
COMMON = (
    "seed",
    "model",
    "dataset",
    "optimizer",
    "lr_schedule",
    "callback",
    "trainer",
    "on_nonfinite",
)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def my_blocks(
    num: int, size: int, progress: Progress | None = None, begin: int = 0
) -> Iterator[range]:
    """This rank's blocks of ``begin .. num - 1``: every ``world``-th of those of ``size`` images.

    The last one is shorter. A block holds the same images whatever the number of ranks, so a
    network sees the same batches. progress: shows the work of the first rank; None shows nothing.
    """
    rank, world = rank_and_world()
    blocks = [range(start, min(start + size, num)) for start in range(begin, num, size)]
    own = blocks[rank::world]
    return iter(own) if rank or progress is None else progress(own)


def gather(parts: Mapping[int, T]) -> list[T]:
    """What all ranks have made of their blocks, by first position, in order, on every rank."""
    everything = [parts]
    if rank_and_world()[1] > 1:
        everything = [None] * dist.get_world_size()
        dist.all_gather_object(everything, dict(parts))
    merged = {start: part for one in everything for start, part in one.items()}
    return [merged[start] for start in sorted(merged)]


def share_work(
    num: int, size: int, work: Callable[[range], T], progress: Progress | None = None
) -> list[T]:
    """``work`` of every block of ``0 .. num - 1``: all results, in order, on every rank.

    Each block is done by one rank. Where ``work`` fails on one, it fails on all: see
    ``failing_together``.
    """
    parts = {}
    with failing_together():
        for block in my_blocks(num, size, progress):
            parts[block.start] = work(block)
    return gather(parts)


@contextmanager
def failing_together() -> Iterator[None]:
    """Work of all ranks: an error of one is raised on all, or the others would wait for it.

    Subclasses of ProjectError and ValueError keep their class and message, so that all handle them
    alike; anything else is a RuntimeError on the ranks that are not at fault.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    rank, _ = rank_and_world()
    failures = gather({rank: (rank, *_for_others(own)) if own else None})
    for origin, kind, message in filter(None, failures):
        raise own if origin == rank else kind(message)


class SameOnAllRanks(pl.Callback):
    """Refuses ranks with other settings: each composes its own, and would wait for the others.

    config: the resolved configuration; paths may differ. step: the one that this rank goes on from.
    """

    def __init__(self, config: Mapping[str, Any], step: int) -> None:
        self.settings: dict[str, Any] = {}
        for name, value in flat({part: config[part] for part in COMMON}):
            if not (isinstance(value, str) and os.sep in value):
                self.settings[name] = value
        self.settings["the step to go on from"] = step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare, on all ranks alike. Raises ConfigError."""
        rank, world = rank_and_world()
        if stage != "fit" or world == 1:
            return
        first, *others = gather({rank: self.settings})
        for number, other in enumerate(others, start=1):
            for name in sorted(first.keys() | other.keys(), key=_from_above):
                here, there = first.get(name), other.get(name)
                if repr(here) != repr(there):
                    difference = f"{name}={there}: of rank {number}, where rank 0 has {here}"
                    advice = "give all ranks the same command, files and environment"
                    raise ConfigError(f"{difference}; {advice}")


def _from_above(name: str) -> tuple[int, str]:
    return name.count("."), name


def _for_others(error: Exception) -> tuple[type[Exception], str]:
    """What other ranks can raise in the place of an error."""
    if isinstance(error, ProjectError):
        return type(error), str(error)
    return (ValueError if isinstance(error, ValueError) else RuntimeError), first_line(error)
