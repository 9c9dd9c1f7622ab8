"""Train a model: ``python -m src.train model=ddpm schedule=cosine``."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from src.config.quick import quick_start, split_torchmetrics, uncollected
from src.config.rank import is_first
from src.logger.wandb_import import import_wandb
from src.rundir.recorded import config_inside
from src.training.interruption import INTERRUPTION

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from src.training.assembly import Assembly

log = logging.getLogger("src.train")


def train(cfg: DictConfig) -> float | None:
    """Train, test and report the run of ``cfg`` (conf/train.yaml); return its optimised metric.

    Every object is built, and the data read, before the run directory exists. Raises subclasses of
    ProjectError.
    """
    from contextlib import nullcontext
    from pathlib import Path

    begin = time.monotonic()
    with uncollected():
        if is_first() and cfg.logger.get("wandb"):
            import_wandb()
        split_torchmetrics()
        from src.logger.loggers import loggers_of
        from src.logger.wandb_logger import close_wandb
        from src.rundir.directory import run_directory
        from src.training.assembly import assemble

    assembly = assemble(cfg)
    start, trainer, config = assembly.start, assembly.trainer, assembly.config
    first = trainer.is_global_zero
    directory = run_directory(cfg, config, resumed=start.resumes) if first else nullcontext()
    with INTERRUPTION.listening(), directory:
        try:
            if first:
                start.bring_along(Path(cfg.run_dir))
                _say_how(cfg, assembly)
            with uncollected():
                trainer.loggers = loggers_of(cfg, config, start.step)
            cost = _fit(cfg, assembly)
            metrics = _measure(assembly) | cost | {"seconds": time.monotonic() - begin}
            if first:
                _write(assembly, Path(cfg.run_dir), metrics)
            if cfg.optimized_metric not in metrics:
                log.warning("optimized_metric=%s: was not measured here", cfg.optimized_metric)
        finally:
            close_wandb()
    return metrics.get(cfg.optimized_metric)


def _say_how(cfg: DictConfig, assembly: Assembly) -> None:
    """What the user has not chosen, and may want to know at once."""
    from src.config.machine import warn_if_slow

    log.info("threads: %s", assembly.config["provenance"]["threads"])
    warn_if_slow(cfg.trainer)


def _fit(cfg: DictConfig, assembly: Assembly) -> dict[str, float]:
    """Train to the end; return the time that it took, with that of the parts before."""
    from src.callback.throughput import throughput_of
    from src.errors import require
    from src.training.restored import restoring

    start, trainer = assembly.start, assembly.trainer
    start.warn_if_done(trainer.max_steps)
    begin = time.monotonic()
    with restoring(start.path):
        trainer.fit(assembly.module, assembly.data, ckpt_path=start.path, weights_only=True)
    INTERRUPTION.leave_if_requested()
    began = trainer.global_step > 0
    require(began, "trainer.max_time", cfg.trainer.max_time, "was over before the first step")
    seconds = time.monotonic() - begin
    before = sum(callback.seconds for callback in _checkpoints(assembly))
    throughput = throughput_of(trainer)
    speed = {} if throughput is None else throughput.outcome()
    return {"train_seconds": seconds + before} | speed


def _measure(assembly: Assembly) -> dict[str, float]:
    """The last value of every metric; validation and test under the final weights."""
    from src.callback.lightning_repairs import log_at_last_step

    trainer, module = assembly.trainer, assembly.module
    metrics: dict[str, float] = {}
    for callback in _checkpoints(assembly):
        metrics |= callback.metrics  # of the parts before
    metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics["step"] = trainer.global_step
    log_at_last_step(trainer)
    if not any(getattr(callback, "pruned", False) for callback in trainer.callbacks):
        for measure in (trainer.validate, trainer.test):  # the last validation may be steps old
            measure(module, trainer.datamodule, verbose=False)
            metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics["parameters"] = sum(p.numel() for p in module.model.parameters())
    return metrics


def _write(assembly: Assembly, run_dir: Path, metrics: dict[str, float]) -> None:
    """Write metrics.json and the curves, give the outcome to the loggers, print the summary."""
    from src.files import write_json
    from src.logger.loggers import log_outcome
    from src.report.curves import draw_curves
    from src.report.summary import show_summary
    from src.rundir.history import read_history

    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_json(run_dir / "metrics.json", finite)
    draw_curves(read_history(run_dir), run_dir / "samples" / "curves.png")
    log_outcome(assembly.trainer.loggers, run_dir)
    show_summary(run_dir, metrics)


def _checkpoints(assembly: Assembly) -> list:
    from src.callback.checkpoint import Checkpoint

    return [callback for callback in assembly.trainer.callbacks if isinstance(callback, Checkpoint)]


def main() -> None:
    """Entry point of the command line."""
    with quick_start():
        from src.config.cli import run

        run(train, "train", INTERRUPTION.listening, config_inside)


if __name__ == "__main__":
    main()
