"""An evaluation for the loggers: the card as a run of its own."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict

from src.config.build import build
from src.logger.loggers import log_picture
from src.logger.wandb_logger import ID_FILE, close_wandb
from src.report.card import Card


def log_card(cfg: DictConfig, card: Card, output: Path) -> None:
    """Give an evaluation to ``cfg.logger``, as runs of their own below ``output``/evaluation.

    Numbers, their errors as ``<name>_error``, context and notes, and pictures where the logger
    takes any. Not to CSV files: ``evaluation.json`` holds more.
    """
    with open_dict(cfg):
        cfg.run_dir = str(output / "evaluation")
    (output / "evaluation" / ID_FILE).unlink(missing_ok=True)
    numbers = _numbers(card)
    context = card.context | {"notes": "\n".join(card.notes)}
    step = card.context["step"]
    try:
        for name, node in (cfg.get("logger") or {}).items():
            if node and name != "csv":
                logger = build(cfg, f"logger.{name}")
                logger.log_hyperparams(context)
                logger.log_metrics(numbers, step=step)
                for key, picture in card.pictures.items():
                    log_picture(logger, key, picture, step)
                logger.finalize("success")
    finally:
        close_wandb()


def _numbers(card: Card) -> dict[str, float]:
    """Values, then errors, of the numbers that have any."""
    values = {name: value for name, value in card.values.items() if value is not None}
    errors = {f"{name}_error": card.numbers[name].error for name in values}
    return values | {name: error for name, error in errors.items() if error is not None}
