"""All objects of a training run, built and checked before anything is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from src.dataset.base import to_float
from src.errors import require
from src.module import GenerativeModule
from src.noise import generator
from src.runtime.build import build, naming
from src.runtime.checkpoint_io import AtomicCheckpointIO
from src.runtime.data import ImageDataModule, data_of
from src.runtime.run import plain
from src.runtime.start import Start, starting_point
from src.runtime.trainer import build_trainer, check_seed, fill_length


class Assembly(NamedTuple):
    """What ``train`` works with; ``config`` is the resolved configuration as plain values."""

    start: Start
    module: GenerativeModule
    data: ImageDataModule
    trainer: pl.Trainer
    config: dict[str, Any]


@torch.no_grad()
def _check_metric(name: str, module: GenerativeModule, data: ImageDataModule, callbacks: list[pl.Callback]) -> None:
    """Raise ConfigError when no loss and no callback of this run will log ``name``."""
    losses = module.model.eval().loss(to_float(data.splits["val"].images[torch.arange(1)]), None, [generator("check")])
    known = {f"{stage}/{loss}" for stage in ("train", "val", "test") for loss in losses}
    for callback in callbacks:
        known |= getattr(callback, "logged", set())
    module.model.train()
    require(name in known, "optimized_metric", name, f"must be one of {', '.join(sorted(known))}")


def assemble(cfg: DictConfig) -> Assembly:
    """Build the run that ``cfg`` describes and read its data. Raises what is wrong with it; nothing exists yet."""
    check_seed(cfg.seed)
    pl.seed_everything(cfg.seed, verbose=False)
    start = starting_point(cfg)
    module = GenerativeModule(build(cfg, "model"), build(cfg, "optimizer"), build(cfg, "lr_schedule"))
    start.give_weights(module.model)
    data = data_of(cfg)
    total_steps = fill_length(cfg, steps_per_epoch=len(data.splits["train"]) // data.global_batch_size)
    with naming("optimizer"):
        optimizer = module.make_optimizer()
    with naming("lr_schedule"):
        module.make_lr_schedule(optimizer, total_steps)
    config = plain(cfg)
    callbacks = [build(cfg, f"callback.{name}") for name, node in cfg.callback.items() if node and "_target_" in node]
    trainer = build_trainer(cfg, callbacks=callbacks, plugins=[AtomicCheckpointIO(config)], logger=False)
    data.shares(trainer)
    for callback in callbacks:
        if hasattr(callback, "prepare"):
            callback.prepare(module.model, data)
    _check_metric(cfg.optimized_metric, module, data, callbacks)
    return Assembly(start, module, data, trainer, config)
