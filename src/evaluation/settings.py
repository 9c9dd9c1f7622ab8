"""The settings of an evaluation: whether they can work."""

from __future__ import annotations

from omegaconf import DictConfig

from src.config.checks import check_seed, check_trainer
from src.config.machine import settle_precision, warn_if_slow
from src.config.settings import check_settings
from src.errors import require
from src.training.data import ImageDataModule


def check_evaluation(cfg: DictConfig) -> None:
    """Raise ConfigError for settings of ``conf/evaluate.yaml`` that cannot work."""
    check_settings(cfg, dataset=ImageDataModule)
    check_seed(cfg.seed)
    check_trainer(cfg.trainer)
    settle_precision(cfg.trainer)
    warn_if_slow(cfg.trainer)
    for name, least, open_ended in (("num_samples", 2, True), ("batch_size", 1, False)):
        value = cfg[name]
        fits = open_ended if value is None else isinstance(value, int) and value >= least
        require(fits, name, value, f"must be an integer >= {least}")
    require(isinstance(cfg.latents, bool), "latents", cfg.latents, "must be true or false")
