"""Where the time of a training goes: a profiler for Lightning that keeps one sum per phase."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
from pytorch_lightning.profilers import PassThroughProfiler, Profiler

ACTIONS = {  # of Lightning and of ours, whole or from the last dot on -> phase
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimiser",  # around forward and backward; checks and clips gradients too
    "lr_scheduler_step": "optimiser",
    "[Callback]EMA.on_train_batch_end": "optimiser",
    "waiting": "waiting",
    "validation": "validation",
    "saving": "saving",
}
OTHER = "other"
PHASES = (*dict.fromkeys(ACTIONS.values()), OTHER)
BESIDE = ("validation", "saving")  # phases that are no part of a training step
NOTHING = nullcontext()
MOST_MARKS = 10_000  # that wait to be added up


class Clock(Protocol):
    """Marks points in the work of a device."""

    def mark(self) -> Any:  # noqa: ANN401 (what it is concerns the clock alone)
        """The point that the work has reached."""

    def wait(self, mark: Any) -> None:  # noqa: ANN401
        """Until the device has reached a point."""

    def seconds(self, begin: Any, end: Any) -> float:  # noqa: ANN401
        """Between two points that were reached."""


class HostClock:
    """The clock of a CPU, on which work is done when a call comes back."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def wait(self, mark: float) -> None:
        """It has been reached."""

    def seconds(self, begin: float, end: float) -> float:
        """Their difference."""
        return end - begin


class CudaClock:
    """The clock of a GPU, by events in its queue: calls come back long before their work is done.

    Between two marks is also the time in which the GPU had nothing to do. So what the host does
    counts only as far as the GPU has to wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """An event behind all work that was asked for so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Until the GPU has come to an event."""
        mark.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """By the GPU's own clock, which counts milliseconds."""
        return begin.elapsed_time(end) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock that measures the work of ``device``."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class Phases(Profiler):
    """Adds up the time of each phase of a training.

    Lightning tells its profiler when an action begins and ends. Actions are nested: what one within
    another takes is not counted twice. Whatever is part of a validation counts as validation, but
    for saving. ``with trainer.profiler.profile("waiting"):`` marks where the host waits for the
    device; on a GPU its time there is what the device then stands idle.

    Arguments:
        clock: of the device that trains.
        inner: the profiler in whose place this one stands; it is told the same.
    """

    def __init__(self, clock: Clock, inner: Profiler) -> None:
        super().__init__()
        self.inner = inner
        self._clock = clock
        self._sums = dict.fromkeys(PHASES, 0.0)
        self._under_way = [OTHER]
        self._marks = [(OTHER, clock.mark())]  # of changes: the phase that begins there

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """Context of an action; nothing at all for the hundred of a step that nobody measures."""
        if _phase(action_name) is None and isinstance(self.inner, PassThroughProfiler):
            return NOTHING
        return super().profile(action_name)

    def start(self, action_name: str) -> None:
        """Begin the phase of an action, where it is one."""
        self.inner.start(action_name)
        phase = _phase(action_name)
        if phase is None:
            return
        now = self._under_way[-1]
        if now == "validation" and phase != "saving":
            phase = now
        self._under_way.append(phase)
        self._change()

    def stop(self, action_name: str) -> None:
        """Go on with the phase in which the action began."""
        self.inner.stop(action_name)
        if _phase(action_name) is not None:
            self._under_way.pop()
            self._change()

    def seconds(self) -> dict[str, float]:
        """The sum of each phase up to here. Waits for the device."""
        self._marks.append((self._under_way[-1], self._clock.mark()))
        self._add_up()
        return dict(self._sums)

    def _change(self) -> None:
        phase = self._under_way[-1]
        if phase != self._marks[-1][0]:
            self._marks.append((phase, self._clock.mark()))
        if len(self._marks) > MOST_MARKS:
            self._add_up()

    def _add_up(self) -> None:
        self._clock.wait(self._marks[-1][1])
        for (phase, begin), (_, end) in pairwise(self._marks):
            self._sums[phase] += self._clock.seconds(begin, end)
        del self._marks[:-1]


@cache
def _phase(action: str) -> str | None:
    """``[Strategy]DDPStrategy.backward`` -> ``backward``."""
    return ACTIONS.get(action) or ACTIONS.get(action.rpartition(".")[2])
