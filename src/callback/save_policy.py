"""When the state of a run is saved between two validations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from src.errors import require


@dataclass(frozen=True)
class SavePolicy:
    """Saves at intervals, at the end, before a stop, and before a validation.

    Arguments:
        every_steps: optimiser steps from one multiple to the next; None for no such rule.
        every_minutes: since the last save; None for no such rule.
    """

    every_steps: int | None = None
    every_minutes: float | None = 10.0

    def __post_init__(self) -> None:
        steps = self.every_steps
        minutes = self.every_minutes
        whole = steps is None or (isinstance(steps, int) and steps >= 1)
        require(whole, "every_steps", steps, "must be an integer >= 1, or null")
        positive = minutes is None or (isinstance(minutes, int | float) and 0 < minutes < math.inf)
        require(positive, "every_minutes", minutes, "must be > 0, or null")

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether an interval ends at ``step``, ``seconds`` after the last save."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.every_minutes is not None and seconds > 60 * self.every_minutes

    def saves(self, due: bool, requested: bool, over: bool, validates: bool) -> bool:
        """Whether the state after an optimiser step is saved.

        Arguments:
            due: see ``is_due``, on any rank.
            requested: a rank was requested to stop.
            over: it was the last step.
            validates: a validation follows, and may be cut off.
        """
        return due or requested or over or validates
