"""Generation metrics of a model: one pass of features over its samples, judged against the real images."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

import torch

from src.dataset.base import ImageData
from src.errors import ConfigError, require
from src.features.base import CanClassify, Features
from src.metric.base import Measurement, Reference, Samples
from src.metric.generation import GenerationMetrics, pooled
from src.model.base import CanSample
from src.runtime.ranks import gather
from src.runtime.reference import reference_of
from src.runtime.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass
class Judge:
    """Measures how good samples are, the same way during training and at the end.

    features: images -> vectors. metric: vectors -> numbers. cache_dir: where features of real images are kept, or null.
    """

    features: Features
    metric: GenerationMetrics
    cache_dir: str | os.PathLike[str] | None = None
    _known: list[tuple[ImageData, Reference]] = field(default_factory=list)  # of the splits used so far

    def prepare(self, train: ImageData, num_samples: int) -> None:
        """Train or check the features, so that what cannot work fails early."""
        require(num_samples >= 2, "num_samples", num_samples, "must be >= 2: metrics of samples need a covariance")
        self.features.fit(train.images, train.labels)

    @torch.no_grad()
    def measure(
        self, model: CanSample, train: ImageData, num: int, sampler: Sampler, held_out: ImageData | None = None
    ) -> dict[str, Measurement]:
        """All numbers for ``num`` samples, ``metric.num_repeats`` times over with noise of their own; on every rank.

        held_out: real images that the model has not seen; they give the floor. Raises ConfigError where the samples
        have another shape than the images.
        """
        real = self._reference(train)
        unseen = None if held_out is None else self._reference(held_out).features
        repeats = []
        for repeat in range(self.metric.num_repeats):
            parts = {}
            for start, images in sampler.blocks(model, num * (repeat + 1), begin=num * repeat):
                if tuple(images.shape[1:]) != train.image_shape:
                    shapes = f"{list(images.shape[1:])}, the data set's images {list(train.image_shape)}"
                    raise ConfigError(f"dataset.image_shape={list(train.image_shape)}: samples are {shapes}")
                parts[start] = self.features(images).cpu()
                parts[start][[i - start for i in sampler.not_finite if 0 <= i - start < len(images)]] = float("nan")
            fake = torch.cat(gather(parts))
            seen = self.features.probabilities_of(fake) if isinstance(self.features, CanClassify) else None
            repeats.append(self.metric(Samples(real, fake, unseen, seen)))
        return pooled(repeats)

    def _reference(self, data: ImageData) -> Reference:
        for known, reference in self._known:
            if known is data:
                return reference
        self._known.append((data, reference_of(self.features, data, self.cache_dir)))
        return self._known[-1][1]


def named(measured: dict[str, Measurement], features: Features, num: int) -> dict[str, Measurement]:
    """Names that say what the numbers are: ``fid`` -> ``fid_classifier_360``, with the number of images judged."""
    judged = {name: m.context.get("n_held_out", num) for name, m in measured.items()}
    short = {name: f"{n // 1000}k" if n % 1000 == 0 else str(n) for name, n in judged.items()}
    return {f"{name}_{features.name}_{short[name]}": m for name, m in measured.items()}
