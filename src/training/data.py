"""Loaders: order, augmentation and noise seeds are functions of (seed, epoch, step, position), never of rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.dataset.base import SPLITS, Batch, ImageData, to_float
from src.errors import ConfigError, DataError, require
from src.noise import generator, mix
from src.config.build import build, naming
from src.training.interruption import INTERRUPTION, leave_signals_to_parent

Key = tuple[list[int], list[int]]  # indices of the images of a batch, and their noise seeds
BINARIZE = (None, "static", "dynamic")


def data_of(cfg: DictConfig) -> ImageDataModule:
    """The data that ``cfg.dataset`` describes, read. Raises DataError or ConfigError with the setting's name."""
    node = cfg.dataset
    _ = node.root  # a root that must be given and is not
    with naming("dataset"):
        return ImageDataModule(
            load=build(cfg, "dataset.load"),
            image_shape=node.image_shape,
            global_batch_size=node.global_batch_size,
            seed=cfg.seed,
            num_workers=node.num_workers,
            worker_timeout=node.get("worker_timeout", 180),  # older runs do not name it
            flip=node.flip,
            binarize=node.binarize,
        )


class ImageDataModule(pl.LightningDataModule):
    """The three splits of a data set as loaders.

    load: split -> ImageData. image_shape: what the config says, checked against the images. global_batch_size: images
    per optimiser step, over devices, nodes and accumulation. worker_timeout: seconds for a batch, after which a worker
    counts as lost (0: never). flip: mirror each training image with probability 1/2.
    binarize: null, ``static`` (each image has its bits, whatever the seed) or ``dynamic`` (drawn anew at every visit).
    """

    def __init__(
        self,
        load: Callable[[str], ImageData],
        image_shape: Sequence[int],
        global_batch_size: int,
        seed: int,
        num_workers: int = 0,
        worker_timeout: int = 180,
        flip: bool = False,
        binarize: str | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "global_batch_size": global_batch_size,
            "num_workers": num_workers,
            "worker_timeout": worker_timeout,
        }
        for name, count in counts.items():
            least = int(name == "global_batch_size")
            whole = isinstance(count, int) and count >= least
            require(whole, f"dataset.{name}", count, f"must be an integer >= {least}")
        require(
            binarize in BINARIZE, "dataset.binarize", binarize, "must be null, static or dynamic"
        )
        self.splits = {split: load(split=split) for split in SPLITS}
        for split, data in self.splits.items():
            if data.image_shape != tuple(image_shape):
                raise DataError(
                    f"dataset.image_shape={list(image_shape)}: {split} images are {list(data.image_shape)}"
                )
        size = len(self.splits["train"])
        allowed = f"must be at most the {size} images of the training split"
        require(global_batch_size <= size, "dataset.global_batch_size", global_batch_size, allowed)
        self.global_batch_size, self.seed = global_batch_size, seed
        timeout = (
            worker_timeout if num_workers else 0
        )  # without workers there is nobody to wait for
        self.workers = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "timeout": timeout,
        }
        self.workers["worker_init_fn"] = leave_signals_to_parent
        self.flip, self.binarize = flip, binarize

    def train_dataloader(self) -> DataLoader:
        """Shuffled by seed and epoch; this rank's share of every global batch."""
        data = self.splits["train"]
        plan = TrainPlan(len(data), self.seed, self.global_batch_size, self.shares(self.trainer))
        end = limited(len(plan), self.trainer.limit_train_batches)
        return ResumableLoader(self._batches("train", flip=self.flip), plan, self.workers, end)

    def val_dataloader(self) -> DataLoader:
        """The validation split in order, the same noise at every validation."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._eval_loader("test")

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Images of a split, with the bits and the noise seeds that its loader gives them."""
        seed = mix(self.seed, split)
        return self._batches(split, flip=False)[
            list(indices), [mix(seed, index) for index in indices]
        ]

    def _eval_loader(self, split: str) -> DataLoader:
        world, size = (
            self.trainer.world_size,
            self.global_batch_size // self.trainer.accumulate_grad_batches,
        )
        own = max(1, size // world)
        plan = EvalPlan(
            len(self.splits[split]), mix(self.seed, split), own, self.trainer.global_rank, world
        )
        batches = self._batches(split, flip=False)
        return DataLoader(batches, batch_size=None, sampler=plan, **self.workers)

    def _batches(self, split: str, flip: bool) -> Batches:
        return Batches(self.splits[split], split, flip, self.binarize)

    def shares(self, trainer: pl.Trainer) -> tuple[int, int, int]:
        """(accumulation, world size, rank): how a global batch is cut. Raises ConfigError where it cannot be."""
        accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
        if self.global_batch_size % (accumulate * world):
            raise ConfigError(
                f"dataset.global_batch_size={self.global_batch_size}: must be divisible by {accumulate * world} "
                f"({world} devices x trainer.accumulate_grad_batches={accumulate})"
            )
        return accumulate, world, trainer.global_rank


class Batches(Dataset):
    """Turns a key (indices, seeds) into a Batch, many images at a time."""

    def __init__(self, data: ImageData, split: str, flip: bool, binarize: str | None) -> None:
        self.data, self.split, self.flip, self.binarize = data, split, flip, binarize

    def __getitem__(self, key: Key) -> Batch:
        indices, seeds = key
        pick = torch.tensor(indices)
        x = to_float(self.data.images[pick])
        if self.flip:
            mirrored = torch.tensor([mix(seed, "flip") % 2 == 1 for seed in seeds])
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        if self.binarize:
            x = self._bits(x, indices, seeds)
        return Batch(
            x, None if self.data.labels is None else self.data.labels[pick], seeds, indices
        )

    def _bits(self, x: Tensor, indices: list[int], seeds: list[int]) -> Tensor:
        """Images of -1 and 1, each pixel 1 with probability (x + 1) / 2; static bits are the data's, not the run's."""
        keys = (
            seeds if self.binarize == "dynamic" else [mix("static", self.split, i) for i in indices]
        )
        uniform = torch.stack(
            [torch.rand(x.shape[1:], generator=generator(key, "binarize")) for key in keys]
        )
        return 2 * (uniform < (x + 1) / 2).float() - 1


def limited(num_batches: int, limit: float | None) -> int:
    """Batches of an epoch under a ``trainer.limit_train_batches``: so many, or a share; null is all."""
    return (
        min(num_batches, limit)
        if isinstance(limit, int)
        else int(num_batches * (1.0 if limit is None else limit))
    )


class TrainPlan(Sampler[Key]):
    """Keys of one rank's micro-batches: every global batch is cut into accumulation x rank slices by position."""

    def __init__(
        self, num_images: int, seed: int, global_batch_size: int, shares: tuple[int, int, int]
    ) -> None:
        self.num_images, self.seed, self.global_batch_size = num_images, seed, global_batch_size
        self.accumulate, self.world_size, self.rank = shares
        self.epoch, self.done = -1, 0  # batches of this epoch already given out

    def __len__(self) -> int:
        return self.num_images // self.global_batch_size * self.accumulate

    def __iter__(self) -> Iterator[Key]:
        order = torch.randperm(
            self.num_images, generator=generator(self.seed, "order", self.epoch)
        ).tolist()
        size = self.global_batch_size // (self.accumulate * self.world_size)
        for batch in range(self.done, len(self)):
            step, micro = divmod(batch, self.accumulate)
            first = (micro * self.world_size + self.rank) * size
            positions = range(first, first + size)
            start = step * self.global_batch_size
            indices = [order[start + p] for p in positions]
            yield indices, [mix(self.seed, "train", self.epoch, step, p) for p in positions]


class EvalPlan(Sampler[Key]):
    """Keys of one rank's share of a split, in order; an image's seed depends on its index alone."""

    def __init__(
        self, num_images: int, seed: int, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.mine = range(rank, num_images, world_size)

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        for start in range(0, len(self.mine), self.batch_size):
            indices = list(self.mine[start : start + self.batch_size])
            yield indices, [mix(self.seed, index) for index in indices]


class ResumableLoader(DataLoader):
    """Training loader whose position is part of the checkpoint: a resumed epoch goes on at the next batch.

    Lightning saves and restores ``state_dict`` by itself. The first iteration after a restore continues the epoch,
    every other one begins the next. end: batches after which Lightning ends an epoch, at most ``len(plan)``.
    """

    def __init__(
        self, batches: Batches, plan: TrainPlan, workers: dict[str, Any], end: int
    ) -> None:
        # An own generator: creating an iterator then draws nothing from torch's global one.
        super().__init__(
            batches, batch_size=None, sampler=plan, generator=torch.Generator(), **workers
        )
        self._continues, self._end = False, end

    def __iter__(self) -> Iterator[Batch]:
        plan = self.sampler
        if not self._continues:
            plan.epoch, plan.done = plan.epoch + 1, 0
        self._continues = False
        batches = super().__iter__()
        while True:
            with INTERRUPTION.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            plan.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches given out in it; before the first one, the end of the epoch before."""
        plan = self.sampler
        return (
            {"epoch": plan.epoch, "done": plan.done}
            if plan.done
            else {"epoch": plan.epoch - 1, "done": self._end}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; at the end of an epoch, with the next one."""
        self.sampler.epoch, self.sampler.done = state["epoch"], state["done"]
        self._continues = 0 < state["done"] < self._end
