"""Train a model: ``python -m src.train model=ddpm schedule=cosine``."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from src.config.cli import run

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig

log = logging.getLogger("src.train")


def train(cfg: DictConfig) -> float | None:
    """Train, test and report the run that ``cfg`` (conf/train.yaml, composed) describes; return its optimised metric.

    Every object is built, and the data read, before the run directory exists. Raises subclasses of ProjectError.
    """
    from contextlib import nullcontext
    from pathlib import Path

    from src.errors import require
    from src.training.assembly import assemble
    from src.training.interruption import INTERRUPTION
    from src.logger.loggers import loggers_of
    from src.rundir.directory import run_directory
    from src.logger.wandb_logger import close_wandb

    begin = time.monotonic()
    start, module, data, trainer, config = assemble(cfg)
    first = trainer.is_global_zero
    directory = run_directory(cfg, config, resumed=start.resumes) if first else nullcontext()
    with INTERRUPTION.listening(), directory:
        try:
            if first:
                start.bring_along(Path(cfg.run_dir))
            trainer.loggers = loggers_of(cfg, config, start.step)
            start.warn_if_done(trainer.max_steps)
            begin_fit = time.monotonic()
            trainer.fit(module, data, ckpt_path=start.path, weights_only=True)
            INTERRUPTION.leave_if_requested()
            require(
                trainer.global_step > 0,
                "trainer.max_time",
                cfg.trainer.max_time,
                "was over before the first step",
            )
            seconds = time.monotonic() - begin_fit
            images = (trainer.global_step - start.step) * data.global_batch_size
            cost = {"train_seconds": seconds, "images_per_second": images / seconds}
            return _finish(cfg, trainer, module, begin, cost)
        finally:
            close_wandb()


def _finish(
    cfg: DictConfig,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    begin: float,
    cost: dict[str, float],
) -> float | None:
    """Test under the final weights, write metrics.json and the curves, print the summary."""
    from pathlib import Path

    from src.callback.checkpoint import Checkpoint
    from src.files import write_json
    from src.logger.loggers import log_outcome
    from src.report.summary import draw_curves, read_history, show_summary

    metrics = {}
    for callback in (
        callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)
    ):
        metrics |= callback.metrics  # of the parts before
        cost["train_seconds"] += callback.seconds
    metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics["step"] = trainer.global_step
    trainer.fit_loop.epoch_loop._batches_that_stepped = (
        trainer.global_step
    )  # Lightning forgets it where a fit is over
    pruned = any(getattr(callback, "pruned", False) for callback in trainer.callbacks)
    for judge in (
        () if pruned else (trainer.validate, trainer.test)
    ):  # the fit's last validation may be some steps old
        judge(module, trainer.datamodule, verbose=False)
        metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics["parameters"] = sum(p.numel() for p in module.model.parameters())
    metrics |= cost | {"seconds": time.monotonic() - begin}
    if trainer.is_global_zero:
        run_dir = Path(cfg.run_dir)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        write_json(run_dir / "metrics.json", finite)
        draw_curves(read_history(run_dir), run_dir / "samples" / "curves.png")
        log_outcome(trainer.loggers, run_dir)
        show_summary(run_dir, metrics)
    if cfg.optimized_metric not in metrics:
        log.warning("optimized_metric=%s: was not measured in this run", cfg.optimized_metric)
    return metrics.get(cfg.optimized_metric)


def main() -> None:
    """Entry point of the command line."""
    run(train, "train")


if __name__ == "__main__":
    main()
