"""Loggers that never stop a run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.errors import first_line
from src.runtime.build import build
from src.runtime.card import Card
from src.runtime.run import keep_earlier

log = logging.getLogger(__name__)

INIT_TIMEOUT = 15  # seconds until an unreachable server is given up


def loggers_of(cfg: DictConfig, config: dict[str, Any]) -> list[Logger]:
    """The loggers of ``cfg.logger``, told the resolved ``config``; earlier history is kept."""
    if rank_zero_only.rank == 0:
        keep_earlier(Path(cfg.run_dir) / "metrics.csv")  # Lightning would delete it
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
    mode = _mode()
    if rank_zero_only.rank == 0:
        os.makedirs(save_dir, exist_ok=True)
        common = {"project": project, "dir": save_dir, **settings}
        try:
            if mode == "online" and not wandb.login(prompt=False, timeout=INIT_TIMEOUT):
                raise ConnectionError("not logged in")
            wandb.init(mode=mode, settings=wandb.Settings(init_timeout=INIT_TIMEOUT), **common)
        except Exception as error:  # whatever is wrong with W&B is no reason not to train
            log.warning(
                "W&B cannot be reached or used (%s): logging offline, upload later with `wandb sync`", first_line(error)
            )
            mode = "offline"
            wandb.init(mode=mode, **common)
    return WandbLogger(project=project, save_dir=save_dir, offline=mode == "offline", **settings)


def _mode() -> str:
    """WANDB_MODE where it is one that W&B knows, else online for those who are logged in."""
    import wandb

    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline", "disabled"):
        return asked
    if asked:
        log.warning("WANDB_MODE=%s: must be online, offline or disabled; ignored", asked)
    os.environ.pop("WANDB_MODE", None)
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception as error:
        log.warning("W&B login: %s", first_line(error))
        os.environ.pop("WANDB_API_KEY", None)
        return "offline"


def log_outcome(loggers: list[Logger], run_dir: Path) -> None:
    """Tell W&B where the run and its checkpoint lie."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            places = {"run_dir": str(run_dir), "checkpoint": str(run_dir / "checkpoints" / "last.ckpt")}
            logger.experiment.summary.update(places)


def log_card(cfg: DictConfig, card: Card, output: Path) -> None:
    """Give the numbers of an evaluation to ``cfg.logger``, as runs of their own below ``output``/evaluation.

    Not to CSV files: ``evaluation.json`` holds more.
    """
    with open_dict(cfg):
        cfg.run_dir = str(output / "evaluation")
    known = {name: value for name, value in card.values.items() if value is not None}
    try:
        for name, node in (cfg.get("logger") or {}).items():
            if node and name != "csv":
                logger = build(cfg, f"logger.{name}")
                logger.log_hyperparams(card.context)
                logger.log_metrics(known, step=card.context["step"])
                logger.finalize("success")
    finally:
        close_wandb()


def close_wandb() -> None:
    """Finish the W&B run of this process, so that the next job of a multirun begins its own."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()
