"""Drawing many samples from a model, outside training."""

from __future__ import annotations

import sys

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from src.dataset.base import to_uint8
from src.errors import require
from src.model.base import CanSample
from src.noise import generators, mix
from src.runtime.trainer import check_machine


@torch.inference_mode()
def draw(model: CanSample, cfg: DictConfig) -> Tensor:
    """``cfg.num_samples`` images (N, C, H, W) uint8 on the CPU, ``cfg.batch_size`` at a time, with a progress bar."""
    require(cfg.batch_size >= 1, "batch_size", cfg.batch_size, "must be >= 1")
    check_machine(cfg.trainer)
    fabric = Fabric(accelerator=cfg.trainer.accelerator, devices=1, precision=cfg.trainer.precision)
    fabric.to_device(model)
    parts = [
        range(start, min(start + cfg.batch_size, cfg.num_samples))
        for start in range(0, cfg.num_samples, cfg.batch_size)
    ]
    drawn = []
    for part in track(parts, description="sampling", disable=not sys.stdout.isatty()):
        with fabric.autocast():
            images = model.sample(len(part), generator=generators([mix(cfg.seed, "sample", i) for i in part]))
        drawn.append(to_uint8(images).cpu())
    return torch.cat(drawn)
