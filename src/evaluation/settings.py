"""The settings of an evaluation: whether they can work, and what they make of the run's."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, open_dict

from src.config.checks import check_seed, check_trainer
from src.config.machine import settle_precision, warn_if_slow
from src.config.run_config import run_config
from src.config.settings import check_settings
from src.errors import require


def check_evaluation(cfg: DictConfig) -> None:
    """Raise ConfigError for settings of ``conf/evaluate.yaml`` that cannot work."""
    check_settings(cfg)
    check_seed(cfg.seed)
    check_trainer(cfg.trainer)
    settle_precision(cfg.trainer)
    warn_if_slow(cfg.trainer)
    for name, least, open_ended in (("num_samples", 2, True), ("batch_size", 1, False)):
        value = cfg[name]
        fits = open_ended if value is None else isinstance(value, int) and value >= least
        require(fits, name, value, f"must be an integer >= {least}")
    require(isinstance(cfg.latents, bool), "latents", cfg.latents, "must be true or false")


def config_of_run(cfg: DictConfig, checkpoint: dict[str, Any]) -> DictConfig:
    """The run's configuration with the overrides; all metrics unless the user names others."""
    overrides = list(cfg.overrides)
    if not any(override.startswith("metric=") for override in overrides):
        overrides.insert(0, "metric=full")
    run = run_config(checkpoint["config"], overrides)
    with open_dict(run):
        run.cache_dir = cfg.cache_dir
        if "cache_dir" in run.features:
            run.features.cache_dir = cfg.cache_dir
    return run
