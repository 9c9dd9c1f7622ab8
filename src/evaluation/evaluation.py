"""Everything that can be measured of a trained model, put on one card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only

from src.config.build import build
from src.config.command import typed_overrides
from src.config.run_config import run_config
from src.config.settings import check_settings
from src.config.trainer import check_seed
from src.errors import require
from src.evaluation.codes import disentanglement, posterior_quality
from src.evaluation.generation import Judge, named
from src.evaluation.reconstruction import Reconstruction
from src.features.base import HasAccuracy
from src.metric.base import Measurement
from src.model.base import (
    CanEncode,
    CanEstimate,
    CanReconstruct,
    CanSample,
    CanScore,
    GenerativeModel,
    HasLikelihood,
    HasPosterior,
)
from src.parallel.sampling import Sampler, shards_of
from src.report.bound_terms import bound_terms
from src.report.card import Card
from src.report.progress import shown
from src.rundir.checkpoint import restore
from src.rundir.directory import check_writable
from src.training.data import ImageDataModule, data_of
from src.training.module import GenerativeModule
from src.training.trainer import build_trainer

log = logging.getLogger(__name__)

SCALED = ("loss", "elbo", "reconstruction")  # losses on the scale of the model's likelihood


class Evaluation:
    """One evaluation: the settings of ``conf/evaluate.yaml`` applied to a checkpoint.

    path: of the checkpoint file. output: where files go. All objects are built and checked before anything is
    measured. Raises subclasses of ProjectError.
    """

    def __init__(
        self, cfg: DictConfig, checkpoint: dict[str, Any], path: Path, output: Path
    ) -> None:
        _check(cfg)
        pl.seed_everything(cfg.seed, verbose=False)
        self.cfg, self.checkpoint, self.path = cfg, checkpoint, path
        self.run = _run_config(cfg, checkpoint)
        self.run.seed = cfg.seed  # bits and noise do not depend on the run that is evaluated
        self.model: GenerativeModel = restore(self.run.model, checkpoint)
        metric = build(self.run, "metric")
        samples = isinstance(self.model, CanSample) and metric.active
        self.judge = (
            Judge(build(self.run, "features"), metric, self.run.cache_dir) if samples else None
        )
        self.scoring = build(cfg, "score")
        self.reconstruction: Reconstruction | None = build(cfg, "reconstruction")
        self.trainer = build_trainer(cfg, logger=False, enable_progress_bar=False)
        if rank_zero_only.rank == 0:
            check_writable(output, "output")
        self.data: ImageDataModule = data_of(self.run)
        self.shards = shards_of(output, path, self.run.model, cfg)
        self.num_samples = (
            max(2, len(self.data.splits["test"])) if cfg.num_samples is None else cfg.num_samples
        )
        if self.judge is not None:
            self.judge.prepare(self.data.splits["train"], self.num_samples)

    def card(self) -> Card:
        """Measure; on every rank, each with its share of the work."""
        card = Card(f"Evaluation of {self.path}", self._context())
        self._losses(card)
        device = self.trainer.strategy.root_device
        self.model.to(device).eval()
        self._generation(card, device)
        self._likelihood(card, device)
        if self.reconstruction is not None and isinstance(self.model, CanReconstruct):
            measured = self.reconstruction.measure(self.model, self.data, device)
            card.add("test", measured, **self._basis)
        self._codes(card, device)
        return card

    def forget_samples(self) -> None:
        """Delete the samples that were kept in case of an interruption: the card is written."""
        self.shards.remove()

    def _losses(self, card: Card) -> None:
        for stage in (self.trainer.validate, self.trainer.test):
            stage(GenerativeModule(self.model), self.data, verbose=False)
            for name, value in self.trainer.callback_metrics.items():
                split, _, loss = name.partition("/")
                scaled = loss in SCALED and isinstance(self.model, HasLikelihood)
                scale = (
                    {"unit": "nats per image", "scale": self.model.likelihood.scale}
                    if scaled
                    else {}
                )
                card.add(
                    split, {loss: Measurement(value.item())}, split=split, **scale, **self._basis
                )

    def _generation(self, card: Card, device: torch.device) -> None:
        if not isinstance(self.model, CanSample):
            card.notes.append(
                f"generation metrics skipped: {_kind(self.model)} has no prior to sample from"
            )
        if self.judge is None:
            return
        features, test = self.judge.features.to(device), self.data.splits["test"]
        autocast = self.trainer.precision_plugin.forward_context
        sampler = Sampler(
            self.cfg.seed, self.cfg.batch_size, self.shards, autocast, shown("sampling")
        )
        measured = self.judge.measure(
            self.model, self.data.splits["train"], self.num_samples, sampler, test
        )
        for name in measured:
            if {"n_held_out", "n_unseen"} & measured[name].context.keys():
                measured[name] = measured[name].within(held_out="test")
        context = {"split": "train", "features": features.name, "features_key": features.key}
        context |= {
            "resize": features.resize,
            "rounding": "to uint8",
            "num_repeats": self.judge.metric.num_repeats,
        }
        card.add(
            "test",
            named(measured, features, self.num_samples),
            **context,
            **self._basis,
            **self._sampler,
        )
        card.context["sampling_seconds_per_image"] = sampler.seconds_per_image
        if isinstance(features, HasAccuracy):
            accuracy = Measurement(
                features.accuracy(test.images, test.labels), context={"n_real": len(test)}
            )
            card.add(
                "test",
                {f"accuracy_of_{features.name}": accuracy},
                split="test",
                features_key=features.key,
            )

    def _likelihood(self, card: Card, device: torch.device) -> None:
        if self.scoring is None or not isinstance(self.model, CanScore | CanEstimate):
            reason = (
                "score=null"
                if self.scoring is None
                else f"{_kind(self.model)} gives no likelihood of images"
            )
            card.notes.append(f"likelihood skipped: {reason}")
            return
        try:
            scores = self.scoring.scores(self.model, self.data, device)
        except ValueError as error:
            card.notes.append(f"likelihood skipped: {error}")
            return
        card.add("test", self.scoring.measurements(scores, self.model, self.data), **self._basis)
        if scores.times is not None and scores.times.numel():  # T = 1 has no terms
            card.pictures["bound"] = bound_terms(scores, self.data.splits["test"].image_shape)

    def _codes(self, card: Card, device: torch.device) -> None:
        if not self.cfg.latents:
            return
        if isinstance(self.model, HasPosterior):
            try:
                measured, warning = posterior_quality(self.model, self.data, device)
            except ValueError as error:
                measured, warning = {}, f"latent quality skipped: {error}"
            card.add("test", measured, **self._basis)
            card.notes += [warning] if warning else []
        if isinstance(self.model, CanEncode) and self.data.splits["test"].factors is not None:
            card.add("test", disentanglement(self.model, self.data, device), **self._basis)

    @property
    def _basis(self) -> dict[str, Any]:
        """What every number of the model depends on."""
        return {"weights": "EMA" if self.checkpoint.get("ema") else "raw", "seed": self.cfg.seed}

    @property
    def _sampler(self) -> dict[str, Any]:
        return {
            "sampler": OmegaConf.to_container(self.run.sampler)
            if "sampler" in self.run
            else "prior"
        }

    def _context(self) -> dict[str, Any]:
        dataset = {name: self.run.dataset[name] for name in ("image_shape", "binarize")}
        return {
            "checkpoint": str(self.path),
            "step": self.checkpoint["global_step"],
            "model": _kind(self.model),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **self._basis,
            **self._sampler,
            "dataset": {"name": self.run.dataset.load._target_.split(".")[-2]}
            | OmegaConf.to_container(OmegaConf.create(dataset)),
            "precision": self.cfg.trainer.precision,
            "device": str(self.trainer.strategy.root_device),
            "processes": self.trainer.world_size,
            "overrides": [*typed_overrides(), *self.cfg.overrides],
        }


def _check(cfg: DictConfig) -> None:
    """Raise ConfigError for settings of ``conf/evaluate.yaml`` that cannot work."""
    check_settings(cfg)
    check_seed(cfg.seed)
    for name, least, open_ended in (("num_samples", 2, True), ("batch_size", 1, False)):
        value = cfg[name]
        fits = open_ended if value is None else isinstance(value, int) and value >= least
        require(fits, name, value, f"must be an integer >= {least}")
    require(isinstance(cfg.latents, bool), "latents", cfg.latents, "must be true or false")


def _run_config(cfg: DictConfig, checkpoint: dict[str, Any]) -> DictConfig:
    """The run's configuration with the overrides; all metrics unless the user names others."""
    chosen = any(word.startswith("metric=") for word in cfg.overrides)
    run = run_config(
        checkpoint["config"], cfg.overrides if chosen else ["metric=full", *cfg.overrides]
    )
    with open_dict(run):
        run.cache_dir = cfg.cache_dir
        if "cache_dir" in run.features:
            run.features.cache_dir = cfg.cache_dir
    return run


def _kind(model: GenerativeModel) -> str:
    return type(model).__name__
