"""Evaluate a trained model: ``python -m src.evaluate ckpt_path=RUN``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.runtime.cli import run
from src.runtime.run import OF_RUN

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Losses on the validation and test splits and generation metrics of the model at ``ckpt_path``.

    Uses the averaged weights where the run has them. Writes ``evaluation.json`` (``output``, default: the run
    directory, or beside the file) and returns its numbers; the names of distances carry features and number of images,
    as in ``test/fid_classifier_360``.
    """
    from pathlib import Path

    from src.checkpoint import find_checkpoint, read_checkpoint
    from src.files import write_json
    from src.runtime.report import show_metrics

    path = find_checkpoint(cfg.ckpt_path).resolve()
    checkpoint = read_checkpoint(path)
    run_dir = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    metrics, is_first_rank = _measure(cfg, checkpoint)
    if is_first_rank:
        target = Path(cfg.output or run_dir) / "evaluation.json"
        context = {"checkpoint": str(path), "step": checkpoint["global_step"], "seed": cfg.seed}
        write_json(target, metrics | {"context": context | {"overrides": list(cfg.overrides)}})
        show_metrics(metrics, f"Evaluation of {path}")
        print(f"  written to {target}")
    return metrics


def _measure(cfg: DictConfig, checkpoint: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """The numbers, and whether this process is the first rank."""
    import pytorch_lightning as pl

    from src.checkpoint import restore
    from src.module import GenerativeModule
    from src.runtime.build import build
    from src.runtime.data import data_of
    from src.runtime.report import with_sample_size
    from src.runtime.run import run_config
    from src.runtime.trainer import build_trainer, check_seed

    check_seed(cfg.seed)
    pl.seed_everything(cfg.seed, verbose=False)
    run_cfg = run_config(checkpoint["config"], cfg.overrides)
    model = restore(run_cfg.model, checkpoint)
    data = data_of(run_cfg)
    num_samples = len(data.splits["test"]) if cfg.num_samples is None else cfg.num_samples
    callbacks = []
    if run_cfg.callback.get("generation"):
        callbacks = [build(run_cfg, "callback.generation", test_samples=num_samples, seed=cfg.seed)]
        callbacks[0].prepare(model, data)
    trainer = build_trainer(cfg, callbacks=callbacks, logger=False)
    metrics = {}
    for stage in (trainer.validate, trainer.test):
        stage(GenerativeModule(model, optimizer=None), data, verbose=False)
        metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    return with_sample_size(metrics, num_samples, len(data.splits["test"])), trainer.is_global_zero


def main() -> None:
    """Entry point of the command line."""
    run(evaluate, "evaluate", of_run=OF_RUN)


if __name__ == "__main__":
    main()
