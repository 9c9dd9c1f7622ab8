"""Loggers that never stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.build import build
from src.config.references import without_references
from src.logger.wandb_logger import WandbRun
from src.rundir.directory import keep_earlier
from src.rundir.history import read_history


def loggers_of(cfg: DictConfig, config: dict[str, Any], step: int) -> list[Logger]:
    """The loggers of ``cfg.logger``; earlier history is kept, and W&B is sent the rows it lacks.

    Arguments:
        cfg: of the run.
        config: the same as plain values, which is logged.
        step: at which the run begins.
    """
    history = {}
    if rank_zero_only.rank == 0:
        history = read_history(Path(cfg.run_dir))
        keep_earlier(Path(cfg.run_dir) / "metrics.csv")  # Lightning would delete it
    loggers = [build(cfg, f"logger.{name}") for name, node in cfg.logger.items() if node]
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # beside metrics.csv lies config.yaml
            logger.log_hyperparams(without_references(config))
        if isinstance(logger, WandbRun):
            logger.go_on(history, step)
    return loggers


def log_outcome(loggers: list[Logger], run_dir: Path) -> None:
    """Write to W&B's summary where the run and its checkpoint lie."""
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    places = {"run_dir": str(run_dir), "checkpoint": str(checkpoint)}
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.attempt(lambda run: run.summary.update(places))


def log_picture(logger: Logger, key: str, picture: np.ndarray, step: int) -> None:
    """Give an RGB picture (H, W, 3) uint8 to W&B or TensorBoard; other loggers take none."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")
