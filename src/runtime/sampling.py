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
from src.runtime.trainer import check_machine, check_seed


def check_sampling(cfg: DictConfig) -> None:
    """Raise ConfigError when number, batch, seed or machine of ``src.sample`` cannot work."""
    for name in ("num_samples", "batch_size", "grid_images"):
        require(isinstance(cfg[name], int) and cfg[name] >= 1, name, cfg[name], "must be an integer >= 1")
    check_seed(cfg.seed)
    check_machine(cfg.trainer)


@torch.inference_mode()
def draw(model: CanSample, cfg: DictConfig) -> Tensor:
    """``cfg.num_samples`` images (N, C, H, W) uint8 on the CPU, ``cfg.batch_size`` at a time, with a progress bar."""
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
