"""Drawing many samples from a model: the same images on any number of processes, and resumable."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import Strategy
from omegaconf import DictConfig
from torch import Tensor

from src.config.build import build
from src.config.checks import check_seed
from src.config.machine import check_machine, settle_precision, warn_if_slow
from src.dataset.base import to_uint8
from src.errors import StorageError, require
from src.files import atomic_path, content_hash
from src.model.base import CanSample
from src.noise import Seeds
from src.parallel.compile import compile_networks
from src.parallel.process import prepare_process
from src.parallel.ranks import Progress, failing_together, gather, my_blocks

log = logging.getLogger(__name__)
Autocast = Callable[[], AbstractContextManager]


class Shards:
    """Finished blocks of a long sampling, one ``<start>.npz`` each: a killed one goes on there.

    directory: of these samples alone; put a hash of everything that determines them into its name.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, block: range) -> Tensor | None:
        """The images of a block, uint8 (B, C, H, W); None where missing, damaged or too few."""
        try:
            with np.load(self._path(block), allow_pickle=False) as file:
                images = torch.from_numpy(file["images"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return images if len(images) == len(block) and images.dtype == torch.uint8 else None

    def save(self, block: range, images: Tensor) -> None:
        """Keep the images of a block; raises StorageError when the disk refuses.

        Another process that draws the same samples may end, and remove them all, meanwhile.
        """
        try:
            self._write(block, images)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._write(block, images)

    def _write(self, block: range, images: Tensor) -> None:
        with atomic_path(self._path(block)) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=images.numpy())

    def remove(self) -> None:
        """Delete all shards, at once for whoever writes some."""
        gone = self.directory.with_name(f"{self.directory.name}-{secrets.token_hex(4)}")
        with suppress(OSError):
            self.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _path(self, block: range) -> Path:
        return self.directory / f"{block.start:09d}.npz"


class Sampler:
    """Draws sample ``i`` from noise seeded by (seed, i) alone, whatever its batch, rank or repeat.

    Arguments:
        seed: of all noise.
        batch_size: images per forward pass; across batch sizes convolutions differ in the last bit,
            so a pixel in thousands may differ by one grey level.
        shards: where finished blocks are kept, or None.
        autocast: of the precision.
        progress: shows the blocks as they are drawn, or None.
    """

    def __init__(
        self,
        seed: int,
        batch_size: int,
        shards: Shards | None = None,
        autocast: Autocast = nullcontext,
        progress: Progress | None = None,
    ) -> None:
        self.seed, self.batch_size, self.shards = seed, batch_size, shards
        self.autocast, self.progress = autocast, progress
        self.seconds, self.drawn = 0.0, 0
        self.not_finite: set[int] = set()  # samples with NaN or infinity, which rounding hides

    @property
    def seconds_per_image(self) -> float | None:
        """Measured on this rank over what it drew; None where everything came from shards."""
        return self.seconds / self.drawn if self.drawn else None

    @torch.inference_mode()
    def blocks(self, model: CanSample, num: int, begin: int = 0) -> Iterator[tuple[int, Tensor]]:
        """This rank's share of samples begin .. num - 1, block by block.

        Gives (first index, uint8 (B, C, H, W) on the CPU).
        """
        reused = 0
        for block in my_blocks(num, self.batch_size, self.progress, begin):
            images = None if self.shards is None else self.shards.load(block)
            if images is None:
                images = self._draw(model, block)
                if self.shards is not None and self.not_finite.isdisjoint(block):
                    self.shards.save(block, images)
            else:
                reused += len(block)
            yield block.start, images
        if reused:
            place = self.shards.directory
            log.info(
                "%d of %d samples were drawn before and read from %s", reused, num - begin, place
            )

    def _draw(self, model: CanSample, block: range) -> Tensor:
        begin = time.perf_counter()
        own = Seeds.of(block, self.seed, "sample").generators()
        with self.autocast():
            images = model.sample(len(block), generator=own)
        finite = images.isfinite().flatten(1).all(1).tolist()
        self.not_finite |= {index for index, fine in zip(block, finite, strict=True) if not fine}
        self.seconds += time.perf_counter() - begin
        self.drawn += len(block)
        return to_uint8(images).cpu()


def check_sampling(cfg: DictConfig) -> None:
    """Raise ConfigError when number, batch, seed or machine of ``src.sample`` cannot work."""
    for name in ("num_samples", "batch_size", "grid_images"):
        is_count = isinstance(cfg[name], int) and cfg[name] >= 1
        require(is_count, name, cfg[name], "must be an integer >= 1")
    check_seed(cfg.seed)
    check_machine(cfg.trainer)
    settle_precision(cfg.trainer)
    warn_if_slow(cfg.trainer)


def shards_of(directory: Path, checkpoint: Path, model: dict[str, Any], cfg: DictConfig) -> Shards:
    """Shards in ``directory`` for samples of ``model``, its resolved node, under ``cfg``."""
    settings = model, cfg.seed, cfg.batch_size, cfg.trainer.precision
    key = content_hash(checkpoint.read_bytes(), json.dumps(settings, sort_keys=True))
    return Shards(directory / f".shards-{key}")


def draw(model: CanSample, cfg: DictConfig, shards: Shards, progress: Progress) -> Tensor | None:
    """``cfg.num_samples`` images (N, C, H, W) uint8, of which every rank draws its share.

    On the first rank; None on the others.
    """
    prepare_process()
    settings = ("accelerator", "devices", "num_nodes", "precision")
    fabric = Fabric(**{name: cfg.trainer[name] for name in settings}, strategy=_strategy(cfg))
    fabric.launch()
    fabric.to_device(model)
    if cfg.trainer.compile:
        compile_networks(model)
    # a new output has another name in every process
    shards = Shards(fabric.broadcast(shards.directory))
    sampler = Sampler(cfg.seed, cfg.batch_size, shards, fabric.autocast, progress)
    with failing_together():
        own = dict(sampler.blocks(model, cfg.num_samples))
    parts = gather(own)
    if sampler.not_finite:
        why = "hold NaN or infinite values: the model has diverged"
        log.warning("%d of the samples %s", len(sampler.not_finite), why)
    return torch.cat(parts) if fabric.is_global_zero else None


def _strategy(cfg: DictConfig) -> Strategy | str:
    """Fabric's strategy: for that of a node Fabric has a class of the same name and settings."""
    if isinstance(cfg.trainer.strategy, str):
        return cfg.trainer.strategy
    target = cfg.trainer.strategy._target_.replace("pytorch_lightning.", "lightning_fabric.")
    return build(cfg, "trainer.strategy", _target_=target)
