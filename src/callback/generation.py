"""Generation metrics while training (``val/...``, few samples) and at the end (``test/...``)."""

from __future__ import annotations

import logging
import os

import pytorch_lightning as pl

from src.dataset.base import ImageData
from src.errors import require
from src.evaluation.generation import GenerationEvaluator
from src.features.base import Features
from src.foreign import counts
from src.metric.generation import GenerationMetrics
from src.model.base import CanSample, GenerativeModel
from src.parallel.sampling import Sampler
from src.training.data import ImageDataModule

log = logging.getLogger(__name__)


class Generation(pl.Callback):
    """Logs generation metrics as ``val/<name>_<features>``, and as ``test/...`` at the end.

    Sample i depends on (seed, i) alone, and every rank draws its share.

    Arguments:
        features: images -> feature vectors.
        metric: what is measured of them.
        num_samples: drawn at a validation.
        seed: of the samples.
        every: measured at the first of every so many validations.
        batch_size: of sampling.
        test_samples: drawn at the end; None draws as many as the test split has images, so that
            the distance compares with the floor, that of the real test images.
        cache_dir: where features of the real images are kept.
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
        require(num_samples >= 2, "num_samples", num_samples, "must be >= 2")
        enough = test_samples is None or test_samples >= 2
        require(enough, "test_samples", test_samples, "must be >= 2")
        require(every >= 1, "every", every, "must be >= 1")
        require(batch_size >= 1, "batch_size", batch_size, "must be >= 1")
        self.evaluator = GenerationEvaluator(features, metric, cache_dir)
        self.num_samples = num_samples
        self.test_samples = test_samples
        self.seed = seed
        self.every = every
        self.batch_size = batch_size
        self._active = metric.active
        self._validations = 0
        self._warned: set[str] = set()

    def logged(self, model: GenerativeModel) -> set[str]:
        """Names of what a run of ``model`` with this callback logs."""
        if not self._active or not isinstance(model, CanSample):
            return set()
        names = [f"{name}_{self.evaluator.features.name}" for name in self.evaluator.metric.names]
        every = {f"{stage}/{name}" for stage in ("val", "test") for name in names}
        # held-out images are for the end
        return every - {f"val/fid_floor_{self.evaluator.features.name}"}

    def prepare(self, model: GenerativeModel, data: ImageDataModule) -> None:
        """Train or check the features before a run directory exists: errors come early."""
        if not isinstance(model, CanSample):
            self._active = False
            kind = type(model).__name__
            log.info("generation metrics skipped: %s has no prior to sample from", kind)
        if self._active:
            self.evaluator.prepare(data.splits["train"], self.num_samples)

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
        for name, number in self.evaluator.accuracy(test).items():
            self._log(pl_module, f"test/{name}", number.value)

    def state_dict(self) -> dict[str, int]:
        """The number of validations so far, which ``every`` counts."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self._validations = counts(state_dict, "validations")["validations"]

    def _measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: str,
        num: int,
        held_out: ImageData | None = None,
    ) -> None:
        self.evaluator.features.to(pl_module.device)
        autocast = trainer.precision_plugin.forward_context
        sampler = Sampler(self.seed, self.batch_size, autocast=autocast)
        train = trainer.datamodule.splits["train"]
        numbers = self.evaluator.measure(pl_module.model, train, num, sampler, held_out)
        for name, number in numbers.items():
            key = f"{stage}/{name}_{self.evaluator.features.name}"
            value = number.value
            if value is None:
                value = float("nan")  # a monitored name must be there
                if name not in self._warned:
                    self._warned.add(name)
                    log.warning("%s: %s", key, number.reason)
            self._log(pl_module, key, value)

    def _log(self, pl_module: pl.LightningModule, name: str, value: float) -> None:
        pl_module.log(name, value, batch_size=1, rank_zero_only=False)
