"""All generation metrics of a run; one that fails becomes a null with its reason, never a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from src.errors import first_line, require
from src.metric.base import HasFloor, Measure, Measurement, Reference, Samples, SeesImages


class GenerationMetrics:
    """Runs measures on generated images.

    measures: by any name; a None in place of one switches it off. num_repeats: how many sets of
    images, drawn with different noise, an evaluation is to be made of; the caller draws them and
    gives their results to ``pooled``.
    """

    def __init__(self, measures: Mapping[str, Measure | None] | None, num_repeats: int = 1) -> None:
        require(num_repeats >= 1, "num_repeats", num_repeats, "must be 1 or more")
        self.measures = tuple(measure for measure in (measures or {}).values() if measure)
        self.num_repeats = num_repeats
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        allowed = f"more than one of them measures {', '.join(twice)}"
        require(not twice, "measures", sorted(measures or {}), allowed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of everything that may be measured, floors included."""
        return tuple(
            name for measure in self.measures for name in (*measure.names, *_floor_name(measure))
        )

    @property
    def active(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.measures)

    @property
    def sees_images(self) -> bool:
        """Whether any measure needs the generated images themselves."""
        seeing = [measure for measure in self.measures if isinstance(measure, SeesImages)]
        return any(measure.sees_images for measure in seeing)

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """All measurements of generated images by name, in order."""
        found, unusable = {}, _unusable(samples)
        for measure in self.measures:
            try:
                found |= _nulls(measure, unusable, samples) if unusable else measure(samples)
            except ValueError as error:
                found |= _nulls(measure, first_line(error), samples)
        return found

    def floors(self, real: Reference, held_out: Reference) -> dict[str, Measurement]:
        """What unseen real images reach: once for all repeats, as nothing is generated for it."""
        context = {"n_real": len(real.features), "n_held_out": len(held_out.features)}
        found = {}
        for measure in self.measures:
            if isinstance(measure, HasFloor):
                try:
                    floor = measure.floor(real, held_out)
                except ValueError as error:
                    floor = Measurement(None, reason=first_line(error))
                found[measure.floor_name] = floor.within(**context)
        return found


def pooled(repeats: Sequence[dict[str, Measurement]]) -> dict[str, Measurement]:
    """The mean of each number over repeats, its error the sample sd over them.

    Null where it is null in any repeat. A number that is the same in all repeats stays as it is,
    with its own error.
    """
    return {name: _pooled([repeat[name] for repeat in repeats]) for name in repeats[0]}


def _pooled(repeats: list[Measurement]) -> Measurement:
    missing = [repeat for repeat in repeats if repeat.value is None]
    if missing:
        return missing[0]
    values = [repeat.value for repeat in repeats]
    if len(set(values)) == 1:
        return repeats[0]
    kind = f"sd over {len(values)} repeats"
    return replace(repeats[0], value=fmean(values), error=stdev(values), error_kind=kind)


def _unusable(samples: Samples) -> str:
    if len(samples.fake) == 0:
        return "there are no generated images"
    if not samples.fake.isfinite().all():
        return "features of the generated images hold NaN or infinite values"
    if samples.probabilities is not None and not samples.probabilities.isfinite().all():
        return "probabilities of the generated images hold NaN or infinite values"
    return ""


def _floor_name(measure: Measure) -> list[str]:
    return [measure.floor_name] if isinstance(measure, HasFloor) else []


def _nulls(measure: Measure, reason: str, samples: Samples) -> dict[str, Measurement]:
    """For each of its names a null, with the numbers of images that it would have looked at."""
    sizes = {"n_real": len(samples.real.features), "n_fake": len(samples.fake)}
    context = {
        name: min(size, getattr(measure, "max_images", size)) for name, size in sizes.items()
    }
    return dict.fromkeys(measure.names, Measurement(None, reason=reason, context=context))
