"""Order of the data: indices and keys of noise by (seed, epoch, step, row), never by rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from src.dataset.base import Batch, ImageData, to_float
from src.foreign import checked
from src.noise import Rows, Seeds, generator, rand
from src.training.interruption import INTERRUPTION
from src.training.loader import Loader

BatchKey = tuple[np.ndarray, Seeds | Rows]  # indices of the images of a batch, keys of its noise


class Batches(Dataset):
    """Turns a key into a Batch, many images at a time."""

    def __init__(self, data: ImageData, split: str, flip: bool, binarize: str | None) -> None:
        self.data = data
        self.split = split
        self.flip = flip
        self.binarize = binarize

    def __getitem__(self, key: BatchKey) -> Batch:
        indices, noise = key
        images, labels = self.data.take(torch.from_numpy(indices))
        x = to_float(images)
        if self.flip:
            mirrored = rand((len(x), 1, 1, 1), noise.generators("flip")) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if self.binarize:
            # Static bits are the data's, not the run's.
            if self.binarize == "static":
                own = Seeds.of(indices.tolist(), "static", self.split)
            else:
                own = noise
            is_one = rand(x.shape, own.generators("binarize")) < (x + 1) / 2
            x = 2 * is_one.float() - 1
        return Batch(x, labels, noise, indices)


def limited(num_batches: int, limit: float | None) -> int:
    """Batches of an epoch under ``trainer.limit_train_batches``: a count, a share, or null."""
    if limit is None:
        return num_batches
    if isinstance(limit, int):
        return min(num_batches, limit)
    return int(num_batches * limit)


class TrainPlan(Sampler[BatchKey]):
    """Keys of one rank's micro-batches: a global batch is cut into accumulation x rank slices."""

    def __init__(
        self, num_images: int, seed: int, global_batch_size: int, shares: tuple[int, int, int]
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.accumulate, self.world_size, self.rank = shares
        self.epoch = -1
        self.done = 0  # batches of this epoch already given out

    def __len__(self) -> int:
        return self.num_images // self.global_batch_size * self.accumulate

    def __iter__(self) -> Iterator[BatchKey]:
        order = torch.randperm(
            self.num_images, generator=generator(self.seed, "order", self.epoch)
        ).numpy()
        total = self.global_batch_size
        size = total // (self.accumulate * self.world_size)
        for batch in range(self.done, len(self)):
            step, micro = divmod(batch, self.accumulate)
            first = (micro * self.world_size + self.rank) * size
            noise = Rows((self.seed, "train", self.epoch, step), first, first + size, total)
            yield order[step * total + first :][:size], noise


class EvalPlan(Sampler[BatchKey]):
    """Keys of one rank's share of a split, in order; an image's seed depends on its index alone."""

    def __init__(
        self, num_images: int, seed: int, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.seed = seed
        self.batch_size = batch_size
        self.mine = range(rank, num_images, world_size)

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        for start in range(0, len(self.mine), self.batch_size):
            mine = self.mine[start : start + self.batch_size]
            yield np.array(mine), Seeds.of(mine, self.seed)


class ResumableLoader(Loader):
    """Training loader whose position is part of the checkpoint.

    A resumed epoch goes on at the next batch: Lightning saves and restores ``state_dict`` by
    itself. The first iteration after a restore continues the epoch, every other one begins the
    next. end: batches after which Lightning ends an epoch, at most ``len(plan)``.
    """

    def __init__(
        self, batches: Batches, plan: TrainPlan, workers: dict[str, Any], end: int
    ) -> None:
        # An own generator: creating an iterator then draws nothing from torch's global one.
        super().__init__(
            batches, batch_size=None, sampler=plan, generator=torch.Generator(), **workers
        )
        self._continues = False
        self._end = end

    def __iter__(self) -> Iterator[Batch]:
        plan = self.sampler
        if not self._continues:
            plan.epoch += 1
            plan.done = 0
        self._continues = False
        batches = super().__iter__() if self.num_workers else self._here()
        while True:
            with INTERRUPTION.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            plan.done += 1
            yield batch

    def _here(self) -> Iterator[Batch]:
        """Batches made by this process: what is left of torch's loader without workers."""
        for key in self.sampler:
            batch = self.dataset[key]
            yield batch.pin_memory() if self.pin_memory else batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches given out in it; before the first one, the end of the last epoch."""
        plan = self.sampler
        if plan.done:
            return {"epoch": plan.epoch, "done": plan.done}
        return {"epoch": plan.epoch - 1, "done": self._end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; at the end of an epoch, with the next one."""
        known = checked(state, {"epoch": (int,), "done": (int,)})
        self.sampler.epoch = known["epoch"]
        self.sampler.done = known["done"]
        self._continues = 0 < known["done"] < self._end
