"""A training run put together in three phases: check, build, prepare; nothing is written yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.config.build import build, naming
from src.config.checks import check_training
from src.config.machine import settle_precision
from src.config.untrusted import check_built, check_config
from src.config.words import nearest
from src.errors import ConfigError, first_line, require
from src.model.base import CanEstimate, GenerativeModel
from src.parallel.ranks import SameOnAllRanks
from src.rundir.checkpoint_io import AtomicCheckpointIO
from src.rundir.provenance import plain
from src.rundir.resume import Start, begin
from src.training.blank import blank_losses
from src.training.data import ImageDataModule, data_of
from src.training.interruption import INTERRUPTION
from src.training.module import GenerativeModule
from src.training.trainer import build_trainer, counts_epochs, fill_length

STAGES = ("train", "val", "test")


@runtime_checkable
class LogsNumbers(Protocol):
    """A callback that logs numbers, beside the model's losses."""

    def logged(self, model: GenerativeModel) -> set[str]:
        """Their names in a run of ``model``."""


@runtime_checkable
class Monitors(Protocol):
    """A callback that follows one number."""

    monitor: str | None


@runtime_checkable
class TakesLong(Protocol):
    """A callback with something to do before the run begins, such as training features."""

    def prepare(self, model: GenerativeModel, data: ImageDataModule) -> None:
        """Do it."""


class Parts(NamedTuple):
    """What is built before the data are read. scheduler: None where only the data say how long."""

    model: GenerativeModel
    optimizer: Optimizer
    scheduler: LRScheduler | None
    callbacks: dict[str, pl.Callback]


class Assembly(NamedTuple):
    """What ``train`` works with; ``config`` is the resolved configuration as plain values."""

    start: Start
    module: GenerativeModule
    data: ImageDataModule
    trainer: pl.Trainer
    config: dict[str, Any]


def assemble(cfg: DictConfig) -> Assembly:
    """Put together the run that ``cfg`` describes, its data read and its features trained.

    Raises subclasses of ProjectError for what is wrong with it; what takes long comes last.
    """
    start = check(cfg)
    parts = build_parts(cfg, start)
    return prepare(cfg, start, parts)


def check(cfg: DictConfig) -> Start:
    """Refuse what the configuration alone decides, and find where the run begins."""
    INTERRUPTION.give(cfg.get("grace_seconds", INTERRUPTION.grace))
    check_training(cfg, dataset=ImageDataModule)
    _check_parts(cfg)
    start = begin(cfg)
    settle_precision(cfg.trainer, start.precision)
    return start


def _check_parts(cfg: DictConfig) -> None:
    """Raise ConfigError where the run would not be read again: asked now, not after hours."""
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        return  # whoever builds it reports it
    try:
        check_config(config, cfg.trusted_packages)
        check_built(config, cfg.trusted_packages)
    except ValueError as error:
        raise ConfigError(f"the configuration {first_line(error)}") from error


def build_parts(cfg: DictConfig, start: Start) -> Parts:
    """Build the objects, which check themselves; the names that will be logged are known then."""
    pl.seed_everything(cfg.seed, verbose=False)
    model = build(cfg, "model")
    optimizer = _optimizer(cfg, model)
    scheduler = None
    if not counts_epochs(cfg.trainer):
        scheduler = _scheduler(cfg, optimizer, fill_length(cfg))
    nodes = {name: node for name, node in cfg.callback.items() if node and "_target_" in node}
    callbacks = {name: build(cfg, f"callback.{name}") for name in nodes}
    _check_monitored(cfg, model, callbacks)
    start.give_weights(model)
    return Parts(model, optimizer, scheduler, callbacks)


def prepare(cfg: DictConfig, start: Start, parts: Parts) -> Assembly:
    """Do what may take long: read or download the data, train or download the features."""
    model, optimizer, scheduler, callbacks = parts
    data = data_of(cfg)
    _check_bits(model, data)
    if scheduler is None:
        total_steps = fill_length(cfg, len(data.splits["train"]) // data.global_batch_size)
        scheduler = _scheduler(cfg, optimizer, total_steps)
    config = plain(cfg)
    same = SameOnAllRanks(config, start.step)
    io = AtomicCheckpointIO(config, cfg.trusted_packages)
    trainer = build_trainer(cfg, callbacks=[same, *callbacks.values()], plugins=[io], logger=False)
    for callback in callbacks.values():
        if isinstance(callback, TakesLong):
            callback.prepare(model, data)
    module = GenerativeModule(model, optimizer, scheduler)
    return Assembly(start, module, data, trainer, config)


def _optimizer(cfg: DictConfig, model: GenerativeModel) -> Optimizer:
    """Over all that is trained; not fused under a loss scaler: Lightning then refuses to clip."""
    make = build(cfg, "optimizer")
    scaled = cfg.trainer.precision == "16-mixed" and cfg.optimizer.get("fused")
    settings = {"fused": False, "foreach": True} if scaled else {}
    with naming("optimizer"):
        return make([p for p in model.parameters() if p.requires_grad], **settings)


def _scheduler(cfg: DictConfig, optimizer: Optimizer, total_steps: float) -> LRScheduler:
    make = build(cfg, "lr_schedule")
    with naming("lr_schedule"):
        return make(optimizer, total_steps=total_steps)


def _check_monitored(
    cfg: DictConfig, model: GenerativeModel, callbacks: Mapping[str, pl.Callback]
) -> None:
    """Raise ConfigError where nothing will log the optimised metric, or a monitored one."""
    losses = blank_losses(model, cfg.dataset.image_shape)  # the data are not read yet
    logged = {f"{stage}/{loss}" for stage in STAGES for loss in losses}
    for callback in callbacks.values():
        if isinstance(callback, LogsNumbers):
            logged |= callback.logged(model)
    known = sorted(logged)
    wanted = {"optimized_metric": cfg.optimized_metric}
    for key, callback in callbacks.items():
        if isinstance(callback, Monitors) and callback.monitor is not None:
            wanted[f"callback.{key}.monitor"] = callback.monitor
    for setting, name in wanted.items():
        allowed = f"must be one of {', '.join(known)}{nearest(str(name), known)}"
        require(name in known, setting, name, allowed)


def _check_bits(model: GenerativeModel, data: ImageDataModule) -> None:
    """Raise ConfigError where the likelihood is one of bits and the images are grey."""
    if not isinstance(model, CanEstimate) or model.discrete_scale != "bits":
        return
    images = data.batch("val", range(min(16, len(data.splits["val"])))).x
    if not (images.abs() == 1).all():
        advice = "dataset.binarize=dynamic has the same expected loss"
        other = "likelihood=logistic is one of grey values"
        why = "the images are not binarised"
        raise ConfigError(f"likelihood=bernoulli: {why}; {advice}; {other}")
