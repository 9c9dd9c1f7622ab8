"""Pictures of a run: grids of samples, the denoising film strip and reconstructions."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from src.dataset.base import to_float, to_uint8
from src.errors import require
from src.logger.loggers import log_picture
from src.model.base import CanDenoise, CanReconstruct, CanSample
from src.noise import Seeds
from src.report.pictures import film_strip, grid, save_png

log = logging.getLogger(__name__)

MAX_IMAGES = 10_000  # of one picture, drawn in one batch


class Grid(pl.Callback):
    """Draws samples from the same noise at each validation: the pictures make a flip-book.

    Writes ``<dirpath>/samples/step-<step>.png`` and, at the end, ``final.png``, ``denoising.png``
    (models that denoise) and ``reconstruction.png`` (models that reconstruct: originals above their
    reconstructions); logs them to W&B and TensorBoard. Rank 0 draws alone: a grid is small, and no
    collective is involved.

    Arguments:
        dirpath: the run directory.
        num_images: in a grid.
        seed: of the noise.
    """

    def __init__(self, dirpath: str, num_images: int = 64, seed: int = 0) -> None:
        known = 1 <= num_images <= MAX_IMAGES
        require(known, "num_images", num_images, f"must be between 1 and {MAX_IMAGES}")
        self.folder = Path(dirpath, "samples")
        self.num_images = num_images
        self.seed = seed

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Samples, or reconstructions of a model that cannot sample; else nothing."""
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        name = f"step-{trainer.global_step:08d}"
        if isinstance(pl_module.model, CanSample):
            self._save(trainer, name, "samples", self._samples(pl_module))
        elif isinstance(pl_module.model, CanReconstruct):
            self._save(trainer, name, "samples", self._pairs(trainer, pl_module))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The final pictures."""
        if not trainer.is_global_zero:
            return
        model = pl_module.model
        if isinstance(model, CanSample):
            self._save(trainer, "final", "final_samples", self._samples(pl_module))
        if isinstance(model, CanDenoise):
            times, states, estimates = model.trajectory(5, generator=self._noise(5))
            strip = film_strip(times, to_uint8(states), to_uint8(estimates))
            self._save(trainer, "denoising", "denoising", strip)
        if isinstance(model, CanReconstruct):
            self._save(trainer, "reconstruction", "reconstruction", self._pairs(trainer, pl_module))

    @torch.no_grad()
    def _samples(self, pl_module: pl.LightningModule) -> np.ndarray:
        images = pl_module.model.sample(self.num_images, generator=self._noise(self.num_images))
        return grid(to_uint8(images))

    @torch.no_grad()
    def _pairs(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> np.ndarray:
        """Rows of validation images, each above the row of their reconstructions."""
        data = trainer.datamodule.splits["val"]
        width = min(8, len(data))
        num = max(1, min(len(data), self.num_images // 2) // width) * width  # whole rows only
        images = data.images[torch.arange(num)]
        again = to_uint8(pl_module.model.reconstruct(to_float(images).to(pl_module.device))).cpu()
        rows = []
        for pair in zip(images.split(width), again.split(width), strict=True):
            rows += pair
        return grid(torch.cat(rows), columns=width)

    def _noise(self, num: int) -> list[torch.Generator]:
        return Seeds.of(range(num), self.seed, "sample").generators()

    def _save(self, trainer: pl.Trainer, name: str, key: str, picture: np.ndarray) -> None:
        save_png(picture, self.folder / f"{name}.png")
        for logger in trainer.loggers:
            log_picture(logger, key, picture, trainer.global_step)
