"""Generation metrics while training: ``val/...`` on a few samples, ``test/...`` with the floor at the end."""

from __future__ import annotations

import logging
import os

import pytorch_lightning as pl

from src.dataset.base import ImageData
from src.errors import require
from src.evaluation.generation import GenerationEvaluator
from src.features.base import Features, HasAccuracy
from src.metric.generation import GenerationMetrics
from src.model.base import CanSample, GenerativeModel
from src.parallel.sampling import Sampler
from src.training.data import ImageDataModule

log = logging.getLogger(__name__)


class Generation(pl.Callback):
    """Logs the numbers of ``metric`` as ``val/<name>_<features>`` while training and as ``test/...`` at the end.

    features: images -> feature vectors. metric: what is measured of them. num_samples: drawn at a validation.
    test_samples: drawn at the end; null draws as many as the test split has images, so that the distance compares with
    the floor, that of the real test images. every: validations between two evaluations. cache_dir: where features of
    the real images are kept. Sample i depends on (seed, i) alone and every rank draws its share.
    """

    def __init__(
        self,
        features: Features,
        metric: GenerationMetrics,
        num_samples: int,
        seed: int,
        every: int = 1,
        batch_size: int = 256,
        test_samples: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value, least in (
            ("num_samples", num_samples, 2),
            ("test_samples", test_samples, 2),
            ("every", every, 1),
            ("batch_size", batch_size, 1),
        ):
            require(value is None or value >= least, name, value, f"must be >= {least}")
        self.judge = GenerationEvaluator(features, metric, cache_dir)
        self.num_samples, self.test_samples, self.seed = num_samples, test_samples, seed
        self.every, self.batch_size = every, batch_size
        self._active, self._validations, self._told = metric.active, 0, set()

    def logged(self, model: GenerativeModel) -> set[str]:
        """Names of what a run of ``model`` with this callback logs."""
        measures = self._active and isinstance(model, CanSample)
        names = self.judge.metric.names if measures else ()
        every = {
            f"{stage}/{name}_{self.judge.features.name}"
            for stage in ("val", "test")
            for name in names
        }
        return every - {
            f"val/fid_floor_{self.judge.features.name}"
        }  # held-out images are for the end

    def prepare(self, model: GenerativeModel, data: ImageDataModule) -> None:
        """Train or check the features before a run directory exists, so that what cannot work fails early."""
        if not isinstance(model, CanSample):
            self._active = False
            log.info(
                "generation metrics skipped: %s has no prior to sample from", type(model).__name__
            )
        if self._active:
            self.judge.prepare(data.splits["train"], self.num_samples)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw ``num_samples`` images and log how they compare with the training images."""
        if not self._active or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if (self._validations - 1) % self.every == 0:
            self._measure(trainer, pl_module, "val", self.num_samples)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the numbers and the floor at the size of the test split."""
        if not self._active:
            return
        test = trainer.datamodule.splits["test"]
        self._measure(trainer, pl_module, "test", self.test_samples or len(test), held_out=test)
        if isinstance(self.judge.features, HasAccuracy):
            accuracy = self.judge.features.accuracy(test.images, test.labels)
            self._log(pl_module, f"test/accuracy_of_{self.judge.features.name}", accuracy)

    def state_dict(self) -> dict[str, int]:
        """The number of validations so far, which ``every`` counts."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self._validations = state_dict["validations"]

    def _measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: str,
        num: int,
        held_out: ImageData | None = None,
    ) -> None:
        self.judge.features.to(pl_module.device)
        sampler = Sampler(
            self.seed, self.batch_size, autocast=trainer.precision_plugin.forward_context
        )
        train = trainer.datamodule.splits["train"]
        for name, number in self.judge.measure(
            pl_module.model, train, num, sampler, held_out
        ).items():
            if number.value is None and name not in self._told:
                self._told.add(name)
                log.warning("%s/%s_%s: %s", stage, name, self.judge.features.name, number.reason)
            value = (
                float("nan") if number.value is None else number.value
            )  # a monitored name must be there
            self._log(pl_module, f"{stage}/{name}_{self.judge.features.name}", value)

    def _log(self, pl_module: pl.LightningModule, name: str, value: float) -> None:
        pl_module.log(name, value, batch_size=1, rank_zero_only=False)
