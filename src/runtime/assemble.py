"""All objects of a training run, built and checked before anything is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig

from src.module import GenerativeModule
from src.runtime.build import build, naming
from src.runtime.checkpoint_io import AtomicCheckpointIO
from src.runtime.data import ImageDataModule, data_of
from src.runtime.run import plain
from src.runtime.start import Start, starting_point
from src.runtime.trainer import build_trainer, fill_length


class Assembly(NamedTuple):
    """What ``train`` works with; ``config`` is the resolved configuration as plain values."""

    start: Start
    module: GenerativeModule
    data: ImageDataModule
    trainer: pl.Trainer
    config: dict[str, Any]


def assemble(cfg: DictConfig) -> Assembly:
    """Build the run that ``cfg`` describes and read its data. Raises what is wrong with it; nothing exists yet."""
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
    callbacks = [build(cfg, f"callback.{name}") for name, node in cfg.callback.items() if node]
    trainer = build_trainer(cfg, callbacks=callbacks, plugins=[AtomicCheckpointIO(config)], logger=False)
    data.shares(trainer)
    for callback in callbacks:
        if hasattr(callback, "prepare"):
            callback.prepare(module.model, data)
    return Assembly(start, module, data, trainer, config)
