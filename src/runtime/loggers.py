"""Loggers that never stop a run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.runtime.build import build
from src.runtime.report import keep_history

log = logging.getLogger(__name__)

INIT_TIMEOUT = 15  # seconds until an unreachable server is given up


def loggers_of(cfg: DictConfig, config: dict[str, Any]) -> list[Logger]:
    """The loggers of ``cfg.logger``, told the resolved ``config``; earlier history is kept."""
    keep_history(Path(cfg.run_dir))
    loggers = [build(cfg, f"logger.{name}") for name, node in cfg.logger.items() if node]
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # beside metrics.csv lies config.yaml
            logger.log_hyperparams(config)
    return loggers


def wandb_logger(save_dir: str, project: str, **settings: Any) -> WandbLogger:  # noqa: ANN401
    """W&B without prompts: online when logged in or when WANDB_MODE says so, else offline; also when unreachable.

    save_dir: where offline runs are kept (``<save_dir>/wandb``). settings: passed on to ``wandb.init`` (entity, name,
    group, tags, id, ...).
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", message=".*wandb run already in progress.*")
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if rank_zero_only.rank == 0:
        os.makedirs(save_dir, exist_ok=True)
        common = {"project": project, "dir": save_dir, **settings}
        try:
            wandb.init(mode=mode, settings=wandb.Settings(init_timeout=INIT_TIMEOUT), **common)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            reason = str(error).strip().splitlines()[0]
            log.warning("W&B cannot be reached or used (%s): logging offline, upload later with `wandb sync`", reason)
            mode = "offline"
            wandb.init(mode=mode, **common)
    return WandbLogger(project=project, save_dir=save_dir, offline=mode == "offline", **settings)


def log_outcome(loggers: list[Logger], run_dir: Path) -> None:
    """Tell W&B where the run and its checkpoint lie."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            places = {"run_dir": str(run_dir), "checkpoint": str(run_dir / "checkpoints" / "last.ckpt")}
            logger.experiment.summary.update(places)


def close_wandb() -> None:
    """Finish the W&B run of this process, so that the next job of a multirun begins its own."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()
