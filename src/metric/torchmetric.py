"""torchmetrics' metrics of sets of images as measures of generated images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from src.errors import first_line, is_out_of_memory, require
from src.metric.base import Measurement, Samples
from src.noise import mix

LEAST = 1e-300  # probability; the logarithm of 0 would make a NaN of it
PARTS = ("subsets", "splits")  # whatever the second number of a metric is a spread over


class TorchMetric:
    """A metric of ``torchmetrics.image`` as a measure of generated images.

    What it is given follows from its signature:

    - ``feature`` and ``update(imgs, real)`` (FrechetInceptionDistance, KernelInceptionDistance,
    MemorizationInformedFrechetInceptionDistance): the features of this project of the real and the
    generated images, in float64. ``feature`` is always the identity: no network is loaded. -
    ``feature`` and ``update(imgs)`` (InceptionScore): the logarithms of class probabilities. -
    ``update(img)`` alone (TotalVariation): the generated images in [0, 1].

    Metrics of pairs of images are for ``reconstruction.metrics``. Calls raise ValueError with a
    one-line reason where the samples have no such number.

    Arguments:
        metric: the class with its settings, to be called later (``_partial_: true``).
        name: of the number.
    """

    def __init__(self, metric: Callable[..., Metric], name: str) -> None:
        kind, settings = getattr(metric, "func", metric), getattr(metric, "keywords", {})
        self.kind = getattr(kind, "__name__", str(kind))
        is_metric = isinstance(kind, type) and issubclass(kind, Metric)
        given = list(inspect.signature(kind.update).parameters)[1:] if is_metric else []
        takes_features = is_metric and "feature" in inspect.signature(kind).parameters
        allowed = "must be a metric of torchmetrics that takes feature, or single images"
        require(takes_features or given == ["img"], "metric", self.kind, allowed)
        is_ours = "feature" not in settings
        require(is_ours, "metric.feature", settings.get("feature"), "must be left out")
        self.metric, self.settings, self.names = metric, dict(settings), (name,)
        self.sees_images, self.compares = not takes_features, "real" in given
        self._made(1)  # settings that it refuses are refused before anything is trained

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure all samples."""
        (name,) = self.names
        classifies = not self.compares and not self.sees_images
        if classifies and samples.probabilities is None:
            missing = Measurement(None, reason="the features are not a classifier's", applies=False)
            return {name: missing}
        context = {"n_fake": len(samples.fake), "metric": self.kind, "settings": self.settings}
        if self.compares:
            context["n_real"] = len(samples.real.features)
        try:
            value, error, kind = self._measured(samples)
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(first_line(error)) from error
        return {name: Measurement(value, error, kind).within(**context)}

    def _measured(self, samples: Samples) -> tuple[float, float | None, str]:
        """The number, its spread and what over; random subsets do not move the run's numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix("torchmetric", self.kind))
            metric = self._made(samples.fake.shape[1])
            if self.sees_images:
                metric.update(samples.images / 255)
            elif self.compares:
                metric.update(samples.real.features.double(), real=True)
                metric.update(samples.fake.double(), real=False)
            else:
                metric.update(samples.probabilities.double().clamp(min=LEAST).log())
            found = metric.compute()
        if isinstance(found, Tensor):
            return float(found), None, ""
        value, spread = (float(number) for number in found)
        parts = next(f"{getattr(metric, part)} {part}" for part in PARTS if hasattr(metric, part))
        return (value, spread, f"sd over {parts}") if math.isfinite(spread) else (value, None, "")

    def _made(self, num_features: int) -> Metric:
        """The metric for features of this width; all ranks have them all and exchange nothing."""
        if self.sees_images:
            return self.metric(sync_on_compute=False)
        identity = nn.Identity()
        identity.num_features = num_features
        return self.metric(feature=identity, sync_on_compute=False)
