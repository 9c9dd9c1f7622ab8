"""torchmetrics' metrics of sets of images as measures, computed from this project's features."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from src.errors import first_line, require
from src.metric.base import Measurement, Samples
from src.noise import mix

LEAST = 1e-300  # probability; the logarithm of 0 would make a NaN of it
PARTS = ("subsets", "splits")  # whatever the second number of a metric is a spread over


class TorchMetric:
    """A metric of ``torchmetrics.image`` with an argument ``feature``, the extractor, as a measure.

    These are FrechetInceptionDistance, KernelInceptionDistance, InceptionScore and
    MemorizationInformedFrechetInceptionDistance. ``feature`` is always the identity, so they work
    on the features of this project, in float64, and load no network. Where ``update`` takes
    ``real``, they get the features of the real and of the generated images, otherwise the
    logarithms of the class probabilities of the generated ones. Metrics that need pixels
    (TotalVariation) are refused, as measures see features only; those of pairs of images are for
    ``reconstruction.metrics``.

    Calls raise ValueError with a one-line reason where the samples have no such number.

    Arguments:
        metric: the class with its settings, to be called later (``_partial_: true``).
        name: of the number.
    """

    def __init__(self, metric: Callable[..., Metric], name: str) -> None:
        kind, settings = getattr(metric, "func", metric), getattr(metric, "keywords", {})
        self.kind = getattr(kind, "__name__", str(kind))
        is_metric = isinstance(kind, type) and issubclass(kind, Metric)
        fits = is_metric and "feature" in inspect.signature(kind).parameters
        require(fits, "metric", self.kind, "must be a metric of torchmetrics that takes feature")
        is_ours = "feature" not in settings
        require(is_ours, "metric.feature", settings.get("feature"), "must be left out")
        self.metric, self.settings, self.names = metric, dict(settings), (name,)
        self.compares = "real" in inspect.signature(kind.update).parameters
        self._made(1)  # settings that it refuses are refused before anything is trained

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure all samples."""
        (name,) = self.names
        if not self.compares and samples.probabilities is None:
            missing = Measurement(None, reason="the features are not a classifier's", applies=False)
            return {name: missing}
        context = {"n_fake": len(samples.fake), "metric": self.kind, "settings": self.settings}
        if self.compares:
            context["n_real"] = len(samples.real.features)
        try:
            value, error, kind = self._measured(samples)
        except (RuntimeError, TypeError) as error:
            raise ValueError(first_line(error)) from error
        return {name: Measurement(value, error, kind).within(**context)}

    def _measured(self, samples: Samples) -> tuple[float, float | None, str]:
        """The number, its spread and what over; random subsets do not move the run's numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix("torchmetric", self.kind))
            metric = self._made(samples.fake.shape[1])
            if self.compares:
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
        identity = nn.Identity()
        identity.num_features = num_features
        return self.metric(feature=identity, sync_on_compute=False)
