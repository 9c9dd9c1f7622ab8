"""Loggers that never stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.config.build import build
from src.logger.wandb_logger import WandbRun
from src.rundir.directory import keep_earlier
from src.rundir.history import read_history


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
            places = {
                "run_dir": str(run_dir),
                "checkpoint": str(run_dir / "checkpoints" / "last.ckpt"),
            }
            logger.tell(lambda run, places=places: run.summary.update(places))


def log_picture(logger: Logger, key: str, picture: np.ndarray, step: int) -> None:
    """Give an RGB picture (H, W, 3) uint8 to W&B or TensorBoard; other loggers take none."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")
