"""Generation metrics of a model: one pass of features over its samples, judged against the real images."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

import torch
from torch import Tensor

from src.dataset.base import ImageData
from src.errors import ConfigError, DataError, require
from src.evaluation.reference import reference_of
from src.features.base import CanClassify, Features
from src.metric.base import Measurement, Reference, Samples
from src.metric.generation import GenerationMetrics, pooled
from src.model.base import CanSample
from src.parallel.ranks import failing_together, gather
from src.parallel.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass
class Judge:
    """Measures how good samples are, the same way during training and at the end.

    features: images -> vectors. metric: vectors -> numbers. cache_dir: where features of real images are kept, or null.
    """

    features: Features
    metric: GenerationMetrics
    cache_dir: str | os.PathLike[str] | None = None
    _known: list[tuple[ImageData, Reference]] = field(
        default_factory=list
    )  # of the splits used so far

    def prepare(self, train: ImageData, num_samples: int) -> None:
        """Train or check the features, so that what cannot work fails early.

        Raises ConfigError for fewer than 2 samples, DataError for fewer than 2 training images.
        """
        require(
            num_samples >= 2,
            "num_samples",
            num_samples,
            "must be >= 2: metrics of samples need a covariance",
        )
        if len(train) < 2:
            raise DataError(
                "the training split has 1 image: 2 or more are needed to judge samples by; use metric=none"
            )
        self.features.fit(train.images, train.labels)

    @torch.no_grad()
    def measure(
        self,
        model: CanSample,
        train: ImageData,
        num: int,
        sampler: Sampler,
        held_out: ImageData | None = None,
    ) -> dict[str, Measurement]:
        """All numbers for ``num`` samples, ``metric.num_repeats`` times over with noise of their own; on every rank.

        held_out: real images that the model has not seen; they give the floor. Raises ConfigError where the samples
        have another shape than the images.
        """
        real = self._reference(train)
        unseen = None if held_out is None else self._reference(held_out, decomposed=False)
        repeats = []
        for repeat in range(self.metric.num_repeats):
            fake = self._judged(
                model, sampler, range(num * repeat, num * (repeat + 1)), train.image_shape
            )
            seen = (
                self.features.probabilities_of(fake)
                if isinstance(self.features, CanClassify)
                else None
            )
            repeats.append(
                self.metric(Samples(real, fake, None if unseen is None else unseen.features, seen))
            )
        found = pooled(repeats) | ({} if unseen is None else self.metric.floors(real, unseen))
        return {name: found[name] for name in self.metric.names if name in found}

    def _judged(
        self, model: CanSample, sampler: Sampler, which: range, shape: tuple[int, int, int]
    ) -> Tensor:
        """Features of samples, NaN where the model gave NaN; every rank draws its share and gets all."""
        parts = {}
        with failing_together():
            for start, images in sampler.blocks(model, which.stop, begin=which.start):
                if tuple(images.shape[1:]) != shape:
                    shapes = f"{list(images.shape[1:])}, the data set's images {list(shape)}"
                    raise ConfigError(f"dataset.image_shape={list(shape)}: samples are {shapes}")
                parts[start] = self.features(images).cpu()
                parts[start][
                    [i - start for i in sampler.not_finite if 0 <= i - start < len(images)]
                ] = float("nan")
        return torch.cat(gather(parts))

    def _reference(self, data: ImageData, decomposed: bool = True) -> Reference:
        for known, reference in self._known:
            if known is data:
                return reference
        self._known.append((data, reference_of(self.features, data, self.cache_dir, decomposed)))
        return self._known[-1][1]


def named(measured: dict[str, Measurement], features: Features, num: int) -> dict[str, Measurement]:
    """Names that say what the numbers are: ``fid`` -> ``fid_classifier_360``, with the number of images judged.

    num: of samples drawn; a measure may have looked at fewer.
    """
    judged = {
        name: m.context.get("n_held_out", m.context.get("n_fake", num))
        for name, m in measured.items()
    }
    short = {name: f"{n // 1000}k" if n % 1000 == 0 else str(n) for name, n in judged.items()}
    return {f"{name}_{features.name}_{short[name]}": m for name, m in measured.items()}
