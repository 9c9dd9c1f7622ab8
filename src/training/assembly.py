"""All objects of a training run, built and checked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.optim import Optimizer

from src.errors import ConfigError, require
from src.training.module import GenerativeModule
from src.noise import generator
from src.config.build import build, naming
from src.rundir.checkpoint_io import AtomicCheckpointIO
from src.training.data import ImageDataModule, data_of
from src.config.explain import nearest
from src.parallel.ranks import SameOnAllRanks
from src.rundir.same_run import check_same_run
from src.rundir.directory import check_writable, plain
from src.config.settings import check_settings
from src.rundir.resume import Start, starting_point
from src.training.trainer import build_trainer, check_seed, check_trainer, fill_length


class Assembly(NamedTuple):
    """What ``train`` works with; ``config`` is the resolved configuration as plain values."""

    start: Start
    module: GenerativeModule
    data: ImageDataModule
    trainer: pl.Trainer
    config: dict[str, Any]


def _check_optimizer(cfg: DictConfig, module: GenerativeModule) -> Optimizer:
    """The optimiser; torch refuses a negative number without its name, and takes a rate of 0."""
    rate = cfg.optimizer.get("lr", 1)
    require(rate > 0, "optimizer.lr", rate, "must be > 0")
    for key, value in cfg.optimizer.items():
        require(
            not isinstance(value, int | float) or value >= 0,
            f"optimizer.{key}",
            value,
            "must be >= 0",
        )
    with naming("optimizer"):
        return module.make_optimizer()


@torch.no_grad()
def _losses(cfg: DictConfig, module: GenerativeModule) -> set[str]:
    """Names of the losses that will be logged, from an image that there need not be yet."""
    image = torch.zeros(1, *cfg.dataset.image_shape)
    losses = module.model.eval().loss(image, None, [generator("check")])
    module.model.train()
    return {f"{stage}/{loss}" for stage in ("train", "val", "test") for loss in losses}


def _check_bits(module: GenerativeModule, data: ImageDataModule) -> None:
    """Raise ConfigError where the likelihood is one of bits and the images are grey."""
    if getattr(module.model, "discrete_scale", None) == "bits":
        images = data.batch("val", range(min(16, len(data.splits["val"])))).x
        advice = "dataset.binarize=dynamic has the same expected loss; likelihood=logistic is one of grey values"
        if not (images.abs() == 1).all():
            raise ConfigError(f"likelihood=bernoulli: the images are not binarised; {advice}")


def _check_monitored(cfg: DictConfig, losses: set[str], callbacks: dict[str, pl.Callback]) -> None:
    """Raise ConfigError when no loss and no callback will log the optimised metric or what a callback monitors."""
    known = sorted(
        losses.union(*(getattr(callback, "logged", ()) for callback in callbacks.values()))
    )
    wanted = {
        f"callback.{key}.monitor": getattr(callback, "monitor", None)
        for key, callback in callbacks.items()
    }
    for setting, name in ({"optimized_metric": cfg.optimized_metric} | wanted).items():
        allowed = f"must be one of {', '.join(known)}{nearest(str(name), known)}"
        require(name in known or (name is None and setting in wanted), setting, name, allowed)


def assemble(cfg: DictConfig) -> Assembly:
    """Build the run that ``cfg`` describes and read its data. Raises what is wrong with it; nothing exists yet."""
    check_settings(cfg, dataset=ImageDataModule)
    check_seed(cfg.seed)
    check_trainer(cfg.trainer)
    pl.seed_everything(cfg.seed, verbose=False)
    check_writable(Path(cfg.run_dir), "hydra.run.dir")
    start = starting_point(cfg)
    check_same_run(cfg, start)
    module = GenerativeModule(
        build(cfg, "model"), build(cfg, "optimizer"), build(cfg, "lr_schedule")
    )
    optimizer = _check_optimizer(cfg, module)
    with naming("lr_schedule"):
        module.make_lr_schedule(optimizer, total_steps=1)
    nodes = {name: node for name, node in cfg.callback.items() if node and "_target_" in node}
    callbacks = {name: build(cfg, f"callback.{name}") for name in nodes}
    losses = _losses(cfg, module)
    _check_monitored(cfg, losses, callbacks)
    start.give_weights(module.model)
    data = data_of(cfg)  # the first that may take long: a download
    _check_bits(module, data)
    total_steps = fill_length(
        cfg, steps_per_epoch=len(data.splits["train"]) // data.global_batch_size
    )
    with naming("lr_schedule"):
        module.make_lr_schedule(optimizer, total_steps)
    config = plain(cfg)
    io = AtomicCheckpointIO(config)
    same = SameOnAllRanks(config, start.step)
    trainer = build_trainer(cfg, callbacks=[same, *callbacks.values()], plugins=[io], logger=False)
    data.shares(trainer)
    for callback in callbacks.values():  # the second: features are trained or downloaded
        if hasattr(callback, "prepare"):
            callback.prepare(module.model, data)
    _check_monitored(cfg, losses, callbacks)  # again: one may have found that it has nothing to log
    return Assembly(start, module, data, trainer, config)
