"""Loggers that never stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, open_dict
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.runtime.build import build
from src.runtime.card import Card
from src.runtime.report import read_history
from src.runtime.run import keep_earlier
from src.runtime.wandb_run import ID_FILE, WandbRun, close_wandb


def loggers_of(cfg: DictConfig, config: dict[str, Any], step: int) -> list[Logger]:
    """The loggers of ``cfg.logger`` for a run that begins at ``step``, told the resolved ``config``.

    Earlier history is kept, and W&B told what it may have missed of it.
    """
    history = {}
    if rank_zero_only.rank == 0:
        history = read_history(Path(cfg.run_dir))
        keep_earlier(Path(cfg.run_dir) / "metrics.csv")  # Lightning would delete it
    loggers = [build(cfg, f"logger.{name}") for name, node in cfg.logger.items() if node]
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # beside metrics.csv lies config.yaml
            logger.log_hyperparams(config)
        if isinstance(logger, WandbRun):
            logger.go_on(history, step)
    return loggers


def log_outcome(loggers: list[Logger], run_dir: Path) -> None:
    """Tell W&B where the run and its checkpoint lie."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            places = {"run_dir": str(run_dir), "checkpoint": str(run_dir / "checkpoints" / "last.ckpt")}
            logger.tell(lambda run, places=places: run.summary.update(places))


def log_card(cfg: DictConfig, card: Card, output: Path) -> None:
    """Give an evaluation to ``cfg.logger``, as runs of their own below ``output``/evaluation.

    Numbers, their errors as ``<name>_error``, context and notes, and pictures where the logger takes any. Not to CSV
    files: ``evaluation.json`` holds more.
    """
    with open_dict(cfg):
        cfg.run_dir = str(output / "evaluation")
    (output / "evaluation" / ID_FILE).unlink(missing_ok=True)
    known = {name: value for name, value in card.values.items() if value is not None}
    known |= {f"{name}_error": card.numbers[name].error for name in known if card.numbers[name].error is not None}
    step = card.context["step"]
    try:
        for name, node in (cfg.get("logger") or {}).items():
            if node and name != "csv":
                logger = build(cfg, f"logger.{name}")
                logger.log_hyperparams(card.context | {"notes": "\n".join(card.notes)})
                logger.log_metrics(known, step=step)
                for key, picture in card.pictures.items():
                    log_picture(logger, key, picture, step)
                logger.finalize("success")
    finally:
        close_wandb()


def log_picture(logger: Logger, key: str, picture: np.ndarray, step: int) -> None:
    """Give an RGB picture (H, W, 3) uint8 to W&B or TensorBoard; other loggers take none."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")
