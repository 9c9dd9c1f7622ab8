"""Generation metrics: the Fréchet distance of samples to the training images, and the floor real images reach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from src.dataset.base import ImageData, to_uint8
from src.errors import require
from src.features.base import CanClassify, Features
from src.model.base import CanSample, GenerativeModel
from src.noise import generators, mix
from src.runtime.data import ImageDataModule

log = logging.getLogger(__name__)


class Generation(pl.Callback):
    """Logs ``val/fid_<features>`` while training and ``test/fid_<features>`` with its floor at the end.

    features: images -> feature vectors. metric: (num_features, reset_real) -> metric with ``update`` and ``compute``.
    num_samples: drawn at a validation. test_samples: drawn at the end; null draws as many as the test split has
    images, so that the distance compares with the floor ``test/fid_floor_<features>``, the distance of the real test
    images to the training images. every: validations between two evaluations. Sample i depends on (seed, i) alone and
    every rank draws its share.

    Where the features come from a classifier, ``confident_<features>`` is the share of samples that it assigns to one
    class with a probability above 0.9.
    """

    def __init__(
        self,
        features: Features,
        metric: Callable[..., Metric],
        num_samples: int,
        seed: int,
        every: int = 1,
        batch_size: int = 256,
        test_samples: int | None = None,
    ) -> None:
        for name, value, least in (
            ("num_samples", num_samples, 2),
            ("test_samples", test_samples, 2),
            ("every", every, 1),
            ("batch_size", batch_size, 1),
        ):
            require(value is None or value >= least, name, value, f"must be >= {least}")
        self.features, self.metric = features, metric(num_features=features.num_features, reset_real=False)
        self.num_samples, self.test_samples, self.seed = num_samples, test_samples, seed
        self.every, self.batch_size = every, batch_size
        self._active, self._has_reference, self._validations = True, False, 0

    @property
    def logged(self) -> set[str]:
        """Names of what a run with this callback logs."""
        distance = {f"{stage}/fid_{self.features.name}" for stage in ("val", "test")}
        return distance if self._active else set()

    def prepare(self, model: GenerativeModel, data: ImageDataModule) -> None:
        """Train or check the features before a run directory exists, so that what cannot work fails early."""
        self._active = isinstance(model, CanSample)
        if not self._active:
            log.info("generation metrics skipped: %s has no prior to sample from", type(model).__name__)
            return
        train = data.splits["train"]
        self.features.fit(train.images, train.labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw ``num_samples`` images and log their distance to the training images."""
        if not self._active or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if (self._validations - 1) % self.every == 0:
            self._evaluate(trainer, pl_module, "val", self.num_samples)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log distance and floor at the size of the test split."""
        if not self._active:
            return
        test = trainer.datamodule.splits["test"]
        self._evaluate(trainer, pl_module, "test", self.test_samples or len(test))
        self.metric.reset()
        for images in self._share(test, trainer):
            self.metric.update(self.features(images.to(pl_module.device)), real=False)
        self._log(pl_module, f"test/fid_floor_{self.features.name}", self._distance())
        if isinstance(self.features, CanClassify):
            accuracy = self.features.accuracy(test.images, test.labels)
            self._log(pl_module, f"test/accuracy_of_{self.features.name}", accuracy)

    def state_dict(self) -> dict[str, int]:
        """The number of validations so far, which ``every`` counts."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self._validations = state_dict["validations"]

    @torch.no_grad()
    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str, num: int) -> None:
        self.features.to(pl_module.device)
        self.metric.to("cpu" if pl_module.device.type == "mps" else pl_module.device)  # MPS has no float64
        if not self._has_reference:
            for images in self._share(trainer.datamodule.splits["train"], trainer):
                self.metric.update(self.features(images.to(pl_module.device)), real=True)
            self._has_reference = True
        self.metric.reset()
        sure = torch.zeros((), device=pl_module.device)
        for images in self._samples(trainer, pl_module, num):
            self.metric.update(self.features(images), real=False)
            if isinstance(self.features, CanClassify):
                sure += (self.features.probabilities(images).amax(1) > 0.9).sum()
        self._log(pl_module, f"{stage}/fid_{self.features.name}", self._distance())
        if isinstance(self.features, CanClassify):
            share = trainer.strategy.reduce(sure, reduce_op="sum") / num
            self._log(pl_module, f"{stage}/confident_{self.features.name}", share)

    def _distance(self) -> float:
        """The metric's value; NaN with a line that says why where the samples have none (a diverged model)."""
        try:
            return float(self.metric.compute())
        except ValueError as error:
            log.warning("no Fréchet distance: %s", error)
            return float("nan")

    def _samples(self, trainer: pl.Trainer, pl_module: pl.LightningModule, num: int) -> Iterator[Tensor]:
        """This rank's share of samples 0 .. num - 1 as uint8; which rank draws a sample does not change it."""
        mine = list(range(trainer.global_rank, num, trainer.world_size))
        for start in range(0, len(mine), self.batch_size):
            part = mine[start : start + self.batch_size]
            own = generators([mix(self.seed, "sample", index) for index in part])
            yield to_uint8(pl_module.model.sample(len(part), generator=own))

    def _share(self, data: ImageData, trainer: pl.Trainer) -> Iterator[Tensor]:
        """This rank's share of a split, in order, unflipped and complete."""
        for start in range(trainer.global_rank * self.batch_size, len(data), trainer.world_size * self.batch_size):
            yield data.images[torch.arange(start, min(start + self.batch_size, len(data)))]

    def _log(self, pl_module: pl.LightningModule, name: str, value: float | Tensor) -> None:
        pl_module.log(name, torch.as_tensor(value, dtype=torch.float32), batch_size=1, sync_dist=True)
