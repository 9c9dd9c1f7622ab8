"""Generation metrics of a model: features of its samples, measured against those of real images."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from src.dataset.base import ImageData
from src.errors import ConfigError, DataError, require
from src.evaluation.reference import reference_of
from src.features.base import CanClassify, Features, HasAccuracy
from src.metric.base import Measurement, Reference, Samples
from src.metric.generation import GenerationMetrics, pooled
from src.model.base import CanSample
from src.parallel.ranks import failing_together, gather
from src.parallel.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass
class GenerationEvaluator:
    """Measures how good samples are, the same way during training and at the end.

    Arguments:
        features: images -> vectors.
        metric: vectors -> numbers.
        cache_dir: where features of real images are kept, or null.
    """

    features: Features
    metric: GenerationMetrics
    cache_dir: str | os.PathLike[str] | None = None
    # of the splits used so far
    _known: list[tuple[ImageData, Reference]] = field(default_factory=list)

    def prepare(self, train: ImageData, num_samples: int) -> None:
        """Train or check the features, so that what cannot work fails early.

        Raises ConfigError for fewer than 2 samples, DataError for fewer than 2 training images.
        """
        enough = "must be >= 2: metrics of samples need a covariance"
        require(num_samples >= 2, "num_samples", num_samples, enough)
        if len(train) < 2:
            raise DataError(
                "the training split has 1 image: "
                "2 or more are needed to judge samples by; use metric=none"
            )
        self.features.fit(train.images, train.labels)

    @property
    def context(self) -> dict[str, Any]:
        """What the numbers depend on, beside the model and its samples."""
        return {
            "split": "train",
            "features": self.features.name,
            "features_key": self.features.key,
            "resize": self.features.resize,
            "rounding": "to uint8",
            "num_repeats": self.metric.num_repeats,
        }

    @torch.no_grad()
    def measure(
        self,
        model: CanSample,
        train: ImageData,
        num: int,
        sampler: Sampler,
        held_out: ImageData | None = None,
    ) -> dict[str, Measurement]:
        """All numbers, ``metric.num_repeats`` times over with different noise; on every rank.

        Raises ConfigError where the samples have another shape than the images.

        Arguments:
            model: what is measured.
            train: the images that the samples are compared with.
            num: of samples in each repeat.
            sampler: draws them.
            held_out: real images that the model has not seen; they give the floor.
        """
        real = self._reference(train)
        unseen = None if held_out is None else self._reference(held_out, decomposed=False)
        repeats = []
        for repeat in range(self.metric.num_repeats):
            which = range(num * repeat, num * (repeat + 1))
            drawn = self._drawn(model, sampler, which, train.image_shape)
            repeats.append(self.metric(self._samples(real, unseen, *drawn)))
        found = pooled(repeats)
        if unseen is not None:
            found |= self.metric.floors(real, unseen)
        return {name: found[name] for name in self.metric.names if name in found}

    def accuracy(self, images: ImageData) -> dict[str, Measurement]:
        """The accuracy of features that classify; nothing for others."""
        if not isinstance(self.features, HasAccuracy):
            return {}
        value = self.features.accuracy(images.images, images.labels)
        number = Measurement(value, context={"n_real": len(images)})
        return {f"accuracy_of_{self.features.name}": number}

    def _samples(
        self, real: Reference, unseen: Reference | None, fake: Tensor, images: Tensor | None
    ) -> Samples:
        held_out = None if unseen is None else unseen.features
        probabilities = None
        if isinstance(self.features, CanClassify):
            probabilities = self.features.probabilities_of(fake)
        return Samples(real, fake, held_out, probabilities, images)

    def _drawn(
        self, model: CanSample, sampler: Sampler, which: range, shape: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the samples with these indices, NaN where the model gave NaN.

        With the images themselves where a measure needs them. Every rank draws some and gets all.
        """
        parts = {}
        with failing_together():
            for start, images in sampler.blocks(model, which.stop, begin=which.start):
                if tuple(images.shape[1:]) != shape:
                    shapes = f"{list(images.shape[1:])}, the data set's images {list(shape)}"
                    raise ConfigError(f"dataset.image_shape={list(shape)}: samples are {shapes}")
                found = self.features(images).cpu()
                block = range(start, start + len(images))
                found[[i - start for i in sampler.not_finite if i in block]] = float("nan")
                parts[start] = found, images if self.metric.sees_images else None
        features, kept = zip(*gather(parts), strict=True)
        return torch.cat(features), torch.cat(kept) if self.metric.sees_images else None

    def _reference(self, data: ImageData, decomposed: bool = True) -> Reference:
        for known, reference in self._known:
            if known is data:
                return reference
        reference = reference_of(self.features, data, self.cache_dir, decomposed)
        self._known.append((data, reference))
        return reference


def named(measured: dict[str, Measurement], features: Features, num: int) -> dict[str, Measurement]:
    """Names with the features and the number of images: ``fid`` -> ``fid_classifier_360``.

    num: of samples drawn; a measure may have used fewer.
    """
    found = {}
    for name, number in measured.items():
        used = number.context.get("n_held_out", number.context.get("n_fake", num))
        short = f"{used // 1000}k" if used % 1000 == 0 else str(used)
        found[f"{name}_{features.name}_{short}"] = number
    return found
