"""Loggers that never stop a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from src.files import atomic_path
from src.config.build import build
from src.report.summary import read_history
from src.rundir.directory import keep_earlier
from src.logger.wandb_logger import WandbRun


class AtomicCSVLogger(CSVLogger):
    """metrics.csv; a new column replaces the file at once, where Lightning empties it first and writes it again."""

    def __init__(self, save_dir: str, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(save_dir, **settings)
        if rank_zero_only.rank == 0:
            self._experiment = _Writer(self.log_dir)


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (
            atomic_path(self.metrics_file_path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


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
