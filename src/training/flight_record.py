"""What was going on when a loss or gradient stopped being finite, enough to see it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from src.config.command import train_command
from src.dataset.base import Batch
from src.files import atomic_path, write_text
from src.model.base import DrawsTimes
from src.noise import generators
from src.rundir.store import CheckpointStore


def write_flight_record(
    folder: Path, trainer: pl.Trainer, batches: Sequence[Batch], losses: Tensor
) -> None:
    """``record.json`` and ``batch.pt`` (the batches as tuples) of the present optimiser step.

    record.json: losses of the micro-batches; per image its index in the training split, the key of
    its noise and its time t where the model draws one; per layer the norms of weights and
    gradients, null where not finite; the command that goes on from the last checkpoint, as long as
    it is there, and comes to the same step with the same numbers.
    """
    module = trainer.lightning_module
    losses = losses * trainer.accumulate_grad_batches
    numbers = [_number(loss) for loss in losses]
    images = [_images(module.model, batch) for batch in batches]
    layers = {name: _norms(parameter) for name, parameter in module.model.named_parameters()}
    record = {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
        "precision": trainer.precision,
        "losses": numbers,
        "images": images,
        "layers": layers,
        "replay": _replay(trainer, f"nonfinite-{trainer.global_step:08d}"),
    }
    write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")
    with atomic_path(folder / "batch.pt") as temporary:
        torch.save([tuple(batch) for batch in batches], temporary)


def _replay(trainer: pl.Trainer, name: str) -> str:
    """A run of its own from the last checkpoint, which fails at the same step."""
    run_dir = Path(trainer.default_root_dir)
    found = CheckpointStore(run_dir / "checkpoints").candidates()
    start = [f"ckpt_path={found[0]}"] if found else []
    return train_command(f"hydra.run.dir={run_dir / name / 'replay'}", *start, "on_nonfinite=raise")


def _images(model: nn.Module, batch: Batch) -> dict[str, Any]:
    found = {"indices": batch.indices, "noise_keys": batch.seeds}
    if isinstance(model, DrawsTimes):
        found["t"] = model.draw_times(len(batch.x), generators(batch.seeds)).tolist()
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
