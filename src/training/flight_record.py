"""What was going on when a loss or gradient stopped being finite, enough to see it again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from src.config.command import train_command
from src.dataset.base import Batch
from src.files import atomic_path, write_text
from src.model.base import DrawsTimes
from src.rundir.store import CheckpointStore


class Step(NamedTuple):
    """An optimiser step, as it was when its gradients were there.

    Arguments:
        number: optimiser steps before it.
        epoch: counted from 0.
        lr: learning rate.
        batches: several where gradients are accumulated.
        losses: one of each, on the device.
    """

    number: int
    epoch: int
    lr: float
    batches: list[Batch]
    losses: list[Tensor]


def write_flight_record(folder: Path, trainer: pl.Trainer, step: Step) -> None:
    """``record.json`` and ``batch.pt`` (images, labels, indices) of an optimiser step.

    Gradients must still be those of the step, and weights those from before it.

    record.json: losses of the micro-batches; the key of their noise; per image its index in the
    training split and its time t where the model draws one; per layer the norms of weights and
    gradients, null where not finite; the command that goes on from the last checkpoint, as long as
    it is there, and comes to the same step with the same numbers.
    """
    module = trainer.lightning_module
    numbers = [_number(loss * trainer.accumulate_grad_batches) for loss in step.losses]
    images = [_images(module.model, batch) for batch in step.batches]
    layers = {name: _norms(parameter) for name, parameter in module.model.named_parameters()}
    record = {
        "step": step.number,
        "epoch": step.epoch,
        "lr": step.lr,
        "precision": trainer.precision,
        "losses": numbers,
        "images": images,
        "layers": layers,
        "replay": _replay(trainer, f"nonfinite-{step.number:08d}"),
    }
    write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")
    with atomic_path(folder / "batch.pt") as temporary:
        torch.save([(b.x, b.label, b.indices.tolist()) for b in step.batches], temporary)


def _replay(trainer: pl.Trainer, name: str) -> str:
    """A run of its own from the last checkpoint, which fails at the same step."""
    run_dir = Path(trainer.default_root_dir)
    found = CheckpointStore(run_dir / "checkpoints").candidates()
    start = [f"ckpt_path={found[0]}"] if found else []
    return train_command(f"hydra.run.dir={run_dir / name / 'replay'}", *start, "on_nonfinite=raise")


def _images(model: nn.Module, batch: Batch) -> dict[str, Any]:
    found = {"indices": batch.indices.tolist(), "noise": asdict(batch.noise)}
    if isinstance(model, DrawsTimes):
        found["t"] = model.draw_times(len(batch.x), batch.noise.generators()).tolist()
    pixels = batch.x.flatten(1)
    return found | {
        "min": _number(pixels.min()),
        "max": _number(pixels.max()),
        "mean": _number(pixels.mean()),
    }


def _norms(parameter: Tensor) -> dict[str, float | None]:
    gradient = parameter.grad
    return {
        "weight": _number(parameter.norm()),
        "gradient": None if gradient is None else _number(gradient.norm()),
    }


def _number(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None
