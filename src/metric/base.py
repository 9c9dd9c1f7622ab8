"""What a measured number is, and the features that generation metrics are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from src.metric.frechet import Moments

BLOCK = 2**22  # elements of a matrix between two sets that are held at a time, 32 MB in float64


@dataclass(frozen=True)
class Measurement:
    """A number that says how sure it is and under which circumstances it holds.

    Arguments:
        value: None where there is none; then ``reason`` says why in one line.
        error: its uncertainty in the same unit, whose meaning ``error_kind`` names ("standard
            error", "sd over 10 splits", ...).
        context: what it depends on.
        applies: False where there can be no such number, whatever the images are (a classifier's,
            of other features).
    """

    value: float | None
    error: float | None = None
    error_kind: str = ""
    reason: str = ""
    context: dict[str, Any] = field(default_factory=dict)
    applies: bool = True

    def within(self, **context: Any) -> Measurement:  # noqa: ANN401
        """The same number with more context; what it already says of itself wins."""
        return replace(self, context=context | self.context)


@dataclass(frozen=True, eq=False)
class Reference:
    """Features (N, d) float32 of images, and their moments, computed once and only if asked for."""

    features: Tensor

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance; raises ValueError for N < 2 and where they are not finite."""
        return Moments.of(self.features)


@dataclass(frozen=True)
class Samples:
    """What a measure may look at: one pass of features over generated and real images.

    Arguments:
        real: of the training split.
        fake: (n, d) of generated images.
        held_out: (m, d) of real images that no model has seen, or None.
        probabilities: (n, num_classes) of the generated images where the features are a
            classifier's.
        images: the generated images (n, C, H, W) uint8, kept where a measure ``SeesImages``.
    """

    real: Reference
    fake: Tensor
    held_out: Tensor | None = None
    probabilities: Tensor | None = None
    images: Tensor | None = None


class Measure(Protocol):
    """One kind of generation metric with its settings filled in."""

    names: Sequence[str]  # of all that it returns

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure; raises ValueError with a one-line reason where there is no such number."""


@runtime_checkable
class SeesImages(Protocol):
    """A measure that may need the generated images themselves, beside their features."""

    sees_images: bool


@runtime_checkable
class HasFloor(Protocol):
    """A measure that real images can be put to as well: what a perfect model would reach."""

    floor_name: str

    def floor(self, real: Reference, held_out: Reference) -> Measurement:
        """Measure held-out images.

        Raises ValueError with a one-line reason where there is no such number.
        """


def evenly_spaced(features: Tensor, most: int) -> Tensor:
    """At most ``most`` of the features (n, d), evenly spaced: data may be sorted, by class say."""
    if len(features) <= most:
        return features
    return features[torch.arange(most, device=features.device) * len(features) // most]


def row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, such that each block of it holds about ``BLOCK`` elements."""
    step = max(1, BLOCK // num_columns)
    return (slice(start, start + step) for start in range(0, num_rows, step))


def mean_over_images(values: Tensor, what: str) -> Measurement:
    """Mean of ``what`` over images (n,), its standard error; none where one is not finite."""
    bad = int((~values.isfinite()).sum())
    if bad:
        return Measurement(None, reason=f"{bad} of {len(values)} images have no finite {what}")
    values = values.double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Measurement(float(values.mean()), error, "standard error over images")


def share_error(variance: float, num: int) -> float:
    """Standard error of the mean of ``num`` independent draws from [0, 1] of this variance.

    Half the width of Wilson's interval (1927) at one standard error, which adds one draw: half a 0
    and half a 1. So it is above 0 for equal draws too.
    """
    return (num * variance + 0.25) ** 0.5 / (num + 1)


def binomial_error(share: float, num: int) -> float:
    """Standard error of a share of ``num`` independent draws."""
    return share_error(share * (1 - share), num)
