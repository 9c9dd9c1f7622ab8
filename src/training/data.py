"""The loaders of a data set's splits, the same images and noise on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from src.config.build import build, naming
from src.config.checks import check_batch
from src.dataset.base import SPLITS, Batch, ImageData
from src.errors import DataError, require
from src.noise import Seeds, mix
from src.training.interruption import leave_signals_to_parent
from src.training.loader import Loader
from src.training.order import Batches, EvalPlan, ResumableLoader, TrainPlan, limited

BINARIZE = (None, "static", "dynamic")


def data_of(cfg: DictConfig) -> ImageDataModule:
    """The data of ``cfg.dataset``, read; errors have the setting's name."""
    node = cfg.dataset
    _ = node.root  # raises where it is missing (???)
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

    Arguments:
        load: split -> ImageData.
        image_shape: what the configuration says, checked against the images.
        global_batch_size: images per optimiser step, over devices, nodes and accumulation.
        seed: of order, augmentation and noise.
        num_workers: processes that load batches; 0 is this one.
        worker_timeout: seconds for a batch, after which a worker counts as lost (0: never).
        flip: mirror each training image with probability 1/2.
        binarize: null, ``static`` (each image has its bits, whatever the seed) or ``dynamic``
            (drawn anew at every visit).
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
        _check_count("global_batch_size", global_batch_size, least=1)
        _check_count("num_workers", num_workers, least=0)
        _check_count("worker_timeout", worker_timeout, least=0)
        allowed = "must be null, static or dynamic"
        require(binarize in BINARIZE, "dataset.binarize", binarize, allowed)
        self.splits = {split: _read(load, split, image_shape) for split in SPLITS}
        size = len(self.splits["train"])
        allowed = f"must be at most the {size} images of the training split"
        require(global_batch_size <= size, "dataset.global_batch_size", global_batch_size, allowed)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.flip = flip
        self.binarize = binarize
        self._workers = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "timeout": worker_timeout if num_workers else 0,  # else there is nobody to wait for
            "worker_init_fn": leave_signals_to_parent,
        }

    def train_dataloader(self) -> DataLoader:
        """Shuffled by seed and epoch; this rank's share of every global batch."""
        data = self.splits["train"]
        plan = TrainPlan(len(data), self.seed, self.global_batch_size, self.shares(self.trainer))
        end = limited(len(plan), self.trainer.limit_train_batches)
        return ResumableLoader(self._batches("train", flip=self.flip), plan, self._loading(), end)

    def val_dataloader(self) -> DataLoader:
        """The validation split in order, the same noise at every validation."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._eval_loader("test")

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """Images of a split, with the bits and the noise that its loader gives them."""
        noise = Seeds.of(indices, mix(self.seed, split))
        return self._batches(split, flip=False)[np.array(indices), noise]

    def _eval_loader(self, split: str) -> DataLoader:
        world = self.trainer.world_size
        size = self.global_batch_size // self.trainer.accumulate_grad_batches
        own = max(1, size // world)
        num = len(self.splits[split])
        plan = EvalPlan(num, mix(self.seed, split), own, self.trainer.global_rank, world)
        batches = self._batches(split, flip=False)
        return Loader(batches, batch_size=None, sampler=plan, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """How batches are made; for a GPU in page-locked memory, so that copying needs no wait."""
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return {**self._workers, "pin_memory": on_gpu}

    def _batches(self, split: str, flip: bool) -> Batches:
        return Batches(self.splits[split], split, flip, self.binarize)

    def shares(self, trainer: pl.Trainer) -> tuple[int, int, int]:
        """How a global batch is cut: accumulation, world size, rank.

        Raises ConfigError where it cannot be.
        """
        accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
        check_batch(self.global_batch_size, world, accumulate)
        return accumulate, world, trainer.global_rank


def _check_count(name: str, count: object, least: int) -> None:
    fits = isinstance(count, int) and count >= least
    require(fits, f"dataset.{name}", count, f"must be an integer >= {least}")


def _read(load: Callable[[str], ImageData], split: str, image_shape: Sequence[int]) -> ImageData:
    """A split, whose images must have the shape that the configuration says."""
    data = load(split=split)
    if data.image_shape != tuple(image_shape):
        found = f"{split} images are {list(data.image_shape)}"
        raise DataError(f"dataset.image_shape={list(image_shape)}: {found}")
    return data
