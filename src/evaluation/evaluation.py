"""Everything that can be measured of a trained model, put on one card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from src.config.build import build
from src.config.command import typed_overrides
from src.evaluation.codes import disentanglement, posterior_quality
from src.evaluation.generation import GenerationEvaluator, named
from src.evaluation.reconstruction import Reconstruction
from src.evaluation.settings import check_evaluation
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
from src.rundir.changes import model_of
from src.rundir.checkpoint import restore
from src.rundir.directory import check_writable
from src.training.data import ImageDataModule, data_of
from src.training.module import GenerativeModule
from src.training.trainer import build_trainer

log = logging.getLogger(__name__)

SCALED = ("loss", "elbo", "reconstruction")  # losses on the scale of the model's likelihood


class Evaluation:
    """One evaluation: the settings of ``conf/evaluate.yaml`` and a checkpoint.

    All objects are built and checked before anything is measured. Raises subclasses of
    ProjectError.

    Arguments:
        cfg: the settings, composed on the run.
        checkpoint: its content.
        path: of the checkpoint file.
        output: where files go.
    """

    def __init__(
        self, cfg: DictConfig, checkpoint: dict[str, Any], path: Path, output: Path
    ) -> None:
        check_evaluation(cfg)
        pl.seed_everything(cfg.seed, verbose=False)
        self.cfg = cfg
        self.checkpoint = checkpoint
        self.path = path
        node = model_of(cfg, checkpoint)
        self.model: GenerativeModel = restore(node, checkpoint)
        self.generation = self._generation_evaluator()
        self.scoring = build(cfg, "score")
        self.reconstruction: Reconstruction | None = build(cfg, "reconstruction")
        self.trainer = build_trainer(cfg, logger=False, enable_progress_bar=False)
        if rank_zero_only.rank == 0:
            check_writable(output, "output")
        self.data: ImageDataModule = data_of(cfg)
        self.shards = shards_of(output, path, node, cfg)
        self.num_samples = cfg.num_samples
        if self.num_samples is None:
            self.num_samples = max(2, len(self.data.splits["test"]))
        if self.generation is not None:
            self.generation.prepare(self.data.splits["train"], self.num_samples)

    def card(self) -> Card:
        """Measure everything; the ranks share the work, and each of them gets all numbers."""
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

    def _generation_evaluator(self) -> GenerationEvaluator | None:
        """None where nothing is measured of samples."""
        metric = build(self.cfg, "metric")
        if not isinstance(self.model, CanSample) or not metric.active:
            return None
        return GenerationEvaluator(build(self.cfg, "features"), metric, self.cfg.cache_dir)

    def _losses(self, card: Card) -> None:
        for stage in (self.trainer.validate, self.trainer.test):
            stage(GenerativeModule(self.model), self.data, verbose=False)
            for name, value in self.trainer.callback_metrics.items():
                split, _, loss = name.partition("/")
                context = {"split": split} | self._scale_of(loss) | self._basis
                card.add(split, {loss: Measurement(value.item())}, **context)

    def _generation(self, card: Card, device: torch.device) -> None:
        if not isinstance(self.model, CanSample):
            reason = f"{_kind(self.model)} has no prior to sample from"
            card.notes.append(f"generation metrics skipped: {reason}")
        if self.generation is None:
            return
        train = self.data.splits["train"]
        test = self.data.splits["test"]
        features = self.generation.features.to(device)
        autocast = self.trainer.precision_plugin.forward_context
        batch_size = self.cfg.batch_size
        sampler = Sampler(self.cfg.seed, batch_size, self.shards, autocast, shown("sampling"))
        measured = self.generation.measure(self.model, train, self.num_samples, sampler, test)
        for name in measured:
            if {"n_held_out", "n_unseen"} & measured[name].context.keys():
                measured[name] = measured[name].within(held_out="test")
        context = self.generation.context | self._basis | self._sampler
        card.add("test", named(measured, features, self.num_samples), **context)
        card.context["sampling_seconds_per_image"] = sampler.seconds_per_image
        accuracy = self.generation.accuracy(test)
        card.add("test", accuracy, split="test", features_key=features.key)

    def _likelihood(self, card: Card, device: torch.device) -> None:
        if self.scoring is None:
            card.notes.append("likelihood skipped: score=null")
            return
        if not isinstance(self.model, CanScore | CanEstimate):
            reason = f"{_kind(self.model)} gives no likelihood of images"
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
            self._posterior(card, device)
        if isinstance(self.model, CanEncode) and self.data.splits["test"].factors is not None:
            card.add("test", disentanglement(self.model, self.data, device), **self._basis)

    def _posterior(self, card: Card, device: torch.device) -> None:
        try:
            measured, warning = posterior_quality(self.model, self.data, device)
        except ValueError as error:
            card.notes.append(f"latent quality skipped: {error}")
            return
        card.add("test", measured, **self._basis)
        if warning:
            card.notes.append(warning)

    def _scale_of(self, loss: str) -> dict[str, str]:
        """The scale of a loss, where it is that of a likelihood."""
        if loss in SCALED and isinstance(self.model, HasLikelihood):
            return {"unit": "nats per image", "scale": self.model.likelihood.scale}
        return {}

    @property
    def _basis(self) -> dict[str, Any]:
        """What every number of the model depends on."""
        return {"weights": "EMA" if self.checkpoint.get("ema") else "raw", "seed": self.cfg.seed}

    @property
    def _sampler(self) -> dict[str, Any]:
        if "sampler" not in self.cfg:
            return {"sampler": "prior"}
        return {"sampler": OmegaConf.to_container(self.cfg.sampler, resolve=True)}

    def _context(self) -> dict[str, Any]:
        return {
            "checkpoint": str(self.path),
            "step": self.checkpoint["global_step"],
            "model": _kind(self.model),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **self._basis,
            **self._sampler,
            "dataset": self._dataset(),
            "precision": self.cfg.trainer.precision,
            "device": str(self.trainer.strategy.root_device),
            "processes": self.trainer.world_size,
            "overrides": typed_overrides(),
        }

    def _dataset(self) -> dict[str, Any]:
        dataset = self.cfg.dataset
        settings = OmegaConf.create({name: dataset[name] for name in ("image_shape", "binarize")})
        name = dataset.load._target_.split(".")[-2]
        return {"name": name} | OmegaConf.to_container(settings)


def _kind(model: GenerativeModel) -> str:
    return type(model).__name__
