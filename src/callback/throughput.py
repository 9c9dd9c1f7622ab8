"""How fast a training is, and where its time and memory go."""

from __future__ import annotations

import resource
import sys
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import get_available_flops

from src.callback.phases import BESIDE, PHASES, Phases, clock_of
from src.foreign import checked, counts
from src.training.blank import flops_per_image

DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}


class Spent(NamedTuple):
    """Optimiser steps, and the seconds of each phase in and around them."""

    steps: int
    seconds: dict[str, float]

    @property
    def training(self) -> float:
        """Seconds without those of validation and saving."""
        return sum(value for phase, value in self.seconds.items() if phase not in BESIDE)

    def since(self, earlier: Spent) -> Spent:
        """What has come since."""
        seconds = {phase: self.seconds[phase] - earlier.seconds[phase] for phase in PHASES}
        return Spent(self.steps - earlier.steps, seconds)


class Throughput(pl.Callback):
    """Logs images per second, shares of the time and memory as ``time/...``; keeps their totals.

    Logged every ``trainer.log_every_n_steps`` steps, of all steps since. Rates count the time of
    training steps alone: ``share_validation`` and ``share_saving`` are beside them. The shares add
    up to 1. ``mfu``, the part of the device's peak that the model's own operations use (Chowdhery
    et al. 2022, appendix B), is there where the peak is known. Totals are of all parts of the run.
    """

    def __init__(self) -> None:
        self._before = Spent(0, dict.fromkeys(PHASES, 0.0))  # in earlier processes
        self._steps = 0  # in this one
        self._memory = 0.0
        self._phases: Phases | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out what the rates are of."""
        if stage == "fit":
            self._device = trainer.strategy.root_device
            self._batch_size = trainer.datamodule.global_batch_size
            self._peak = _peak_images_per_second(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._seen = trainer.global_step
        self._phases = Phases(clock_of(self._device), trainer.profiler)
        trainer.profiler = self._phases
        self._logged = self.spent()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Count optimiser steps, and log at the interval."""
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        self._steps += 1
        if trainer.loggers and step % trainer.log_every_n_steps == 0:
            with trainer.profiler.profile("waiting"):
                spent = self.spent()
            numbers = self._numbers(spent.since(self._logged))
            self._logged = spent
            for logger in trainer.loggers:
                logger.log_metrics(_named(numbers), step=step - 1)  # rows are counted from 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation begins, with all that callbacks measure in it."""
        if trainer.profiler is self._phases:
            self._phases.start("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is over."""
        if trainer.profiler is self._phases:
            self._phases.stop("validation")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._before = self.spent()
        self._steps = 0
        trainer.profiler = self._phases.inner
        self._phases = None

    def state_dict(self) -> dict[str, Any]:
        """The totals so far."""
        spent = self.spent()
        return {
            "steps": spent.steps,
            "seconds": spent.seconds,
            "peak_memory_gib": self._peak_memory(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        known = checked(state_dict, {"seconds": (dict,), "peak_memory_gib": (int, float)})
        seconds = checked(known["seconds"], dict.fromkeys(PHASES, (int, float)))
        self._before = Spent(counts(state_dict, "steps")["steps"], seconds)
        self._memory = known["peak_memory_gib"]

    def spent(self) -> Spent:
        """Steps and seconds up to now, of all parts of the run. Waits for the device."""
        if self._phases is None:
            return self._before
        now = self._phases.seconds()
        seconds = {phase: self._before.seconds[phase] + now[phase] for phase in PHASES}
        return Spent(self._before.steps + self._steps, seconds)

    def outcome(self) -> dict[str, float]:
        """What metrics.json says of the whole run; nothing where no step was timed."""
        spent = self.spent()
        if not spent.steps:
            return {}
        numbers = self._numbers(spent)
        plain = {name: numbers.pop(name) for name in ("images_per_second", "peak_memory_gib")}
        return {"step_seconds": spent.training} | plain | _named(numbers)

    def _numbers(self, spent: Spent) -> dict[str, float]:
        total = sum(spent.seconds.values())
        speed = self._batch_size * spent.steps / spent.training
        numbers = {
            "images_per_second": speed,
            "ms_per_step": 1000 * spent.training / spent.steps,
            "peak_memory_gib": self._peak_memory(),
        }
        if self._peak is not None:
            numbers["mfu"] = speed / self._peak
        return numbers | {f"share_{phase}": spent.seconds[phase] / total for phase in PHASES}

    def _peak_memory(self) -> float:
        self._memory = max(self._memory, peak_memory(self._device))
        return self._memory


def throughput_of(trainer: pl.Trainer) -> Throughput | None:
    """The callback of this class, where a run has one."""
    found = (callback for callback in trainer.callbacks if isinstance(callback, Throughput))
    return next(found, None)


def peak_memory(device: torch.device) -> float:
    """GiB that this process had at most: of the GPU, or of the host where ``device`` is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _peak_images_per_second(trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
    """Images per second of a device that does nothing but the model's products at its peak."""
    dtype = DTYPES[trainer.precision.partition("-")[0]]
    peak = get_available_flops(trainer.strategy.root_device, dtype)
    if peak is None:
        return None
    image_shape = trainer.datamodule.splits["train"].image_shape
    return peak * trainer.world_size / (3 * flops_per_image(pl_module.model, image_shape))


def _named(numbers: dict[str, float]) -> dict[str, float]:
    return {f"time/{name}": value for name, value in numbers.items()}
