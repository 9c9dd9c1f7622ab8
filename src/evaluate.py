"""Measure a trained model: ``python -m src.evaluate ckpt_path=RUN``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.config.quick import quick_start
from src.rundir.recorded import config_inside
from src.training.interruption import INTERRUPTION

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> dict[str, float | None]:
    """The metric card of the model at ``ckpt_path``: samples, likelihood, latents and losses.

    Uses the averaged weights where the run has them. Writes ``evaluation.json`` and
    ``evaluation.md`` into ``output`` (default: the run directory, or beside the file; earlier ones
    are set aside), passes the card to the loggers and returns the numbers, whose names are like
    ``test/fid_classifier_360``. What the model cannot do is left out with one line.
    """
    from pathlib import Path

    from src.evaluation.evaluation import Evaluation
    from src.evaluation.log_card import log_card
    from src.rundir.checkpoint import find_checkpoint, read_checkpoint
    from src.rundir.store import run_of

    INTERRUPTION.give(cfg.get("grace_seconds", INTERRUPTION.grace))
    path = find_checkpoint(cfg.ckpt_path).resolve()
    output = Path(cfg.output).expanduser() if cfg.output else run_of(path)
    evaluation = Evaluation(cfg, read_checkpoint(path, trusted=cfg.trusted_packages), path, output)
    card = evaluation.card()
    if evaluation.trainer.is_global_zero:
        files = card.write(output)
        card.show()
        print(f"  written to {', '.join(map(str, files))}")
        log_card(cfg, card, output)
        evaluation.forget_samples()
    return card.values


def main() -> None:
    """Entry point of the command line."""
    with quick_start():
        from src.config.cli import run

        run(evaluate, "evaluate", INTERRUPTION.listening, config_inside)


if __name__ == "__main__":
    main()
