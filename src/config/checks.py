"""What a training run's settings may be: libraries accept some in silence, or name none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.machine import check_machine
from src.config.settings import check_settings
from src.config.untrusted import check_trusted
from src.errors import require


class Rule(NamedTuple):
    """What holds for a value of a setting, and what to say where it does not."""

    setting: str
    holds: Callable[[Any], bool]
    allowed: str

    def check(self, value: object, name: str) -> None:
        """Raise ConfigError unless the value of the setting ``name`` fits."""
        require(self.holds(value), name, value, self.allowed)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and value >= 1)


def _is_length(value: object) -> bool:
    return value is None or (isinstance(value, int) and value >= -1 and value != 0)


def _is_limit(value: object) -> bool:
    is_share = isinstance(value, float) and 0 < value <= 1
    return value is None or is_share or (isinstance(value, int) and value >= 1)


def _is_clipping(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def _is_time(value: object) -> bool:
    return value is None or bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value)))


COUNT = "must be an integer >= 1"
LENGTH = Rule("max_steps", _is_length, "must be an integer >= 1, or -1 for no limit")
LIMIT = "must be batches (>= 1) or a share of an epoch (0 ... 1]"
RULES = (
    LENGTH,
    LENGTH._replace(setting="max_epochs"),
    Rule("accumulate_grad_batches", _is_count, COUNT),
    Rule("log_every_n_steps", _is_count, COUNT),
    Rule("check_val_every_n_epoch", _is_count, COUNT),
    Rule("val_check_interval", _is_limit, LIMIT),
    Rule("limit_train_batches", _is_limit, LIMIT),
    Rule("limit_val_batches", _is_limit, LIMIT),
    Rule("limit_test_batches", _is_limit, LIMIT),
    Rule("gradient_clip_val", _is_clipping, "must be >= 0 (0 or null: no clipping)"),
    Rule("max_time", _is_time, "must be DD:HH:MM:SS, or null"),
    Rule(
        "deterministic",
        lambda value: value in (None, True, False, "warn"),
        "must be true, false or warn",
    ),
    Rule(
        "num_sanity_val_steps",
        lambda value: isinstance(value, int) and value >= -1,
        "must be an integer >= -1",
    ),
)


def check_training(cfg: DictConfig, **built_by_hand: type) -> None:
    """Raise ConfigError where a setting of a training run cannot work, whatever its data are.

    built_by_hand: as in ``check_settings``.
    """
    check_settings(cfg, **built_by_hand)
    check_trusted(cfg.trusted_packages)
    check_seed(cfg.seed)
    processes = check_trainer(cfg.trainer)
    _check_optimizer(cfg.optimizer)
    accumulate = cfg.trainer.accumulate_grad_batches or 1
    check_batch(cfg.dataset.global_batch_size, processes, accumulate)


def check_seed(seed: object) -> None:
    """Raise ConfigError unless torch and NumPy take the seed."""
    fits = isinstance(seed, int) and 0 <= seed < 2**32
    require(fits, "seed", seed, "must be an integer from 0 to 4294967295")


def check_batch(size: object, processes: int, accumulate: int) -> None:
    """Raise ConfigError where images of an optimiser step cannot be shared equally."""
    parts = f"{processes} devices x trainer.accumulate_grad_batches={accumulate}"
    allowed = f"must be divisible by {accumulate * processes} ({parts})"
    divides = not isinstance(size, int) or size % (accumulate * processes) == 0
    require(divides, "dataset.global_batch_size", size, allowed)


def check_trainer(node: DictConfig) -> int:
    """Raise ConfigError where a trainer's setting cannot work; returns the number of processes."""
    processes = check_machine(node)
    for rule in RULES:
        rule.check(node[rule.setting], f"trainer.{rule.setting}")
    epochs, interval = node.check_val_every_n_epoch, node.val_check_interval
    why = "counts batches over the whole run"
    allowed = f"must be null where trainer.val_check_interval={interval} {why}"
    fits = epochs is None or not isinstance(interval, int)
    require(fits, "trainer.check_val_every_n_epoch", epochs, allowed)
    return processes


def _check_optimizer(node: DictConfig) -> None:
    """torch refuses a negative number without its name, and takes a rate of 0."""
    try:
        settings = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        return  # whoever builds it reports it
    rate = settings.get("lr", 1)
    is_rate = isinstance(rate, int | float) and rate > 0
    require(is_rate, "optimizer.lr", rate, "must be > 0")
    for key, value in settings.items():
        is_negative = isinstance(value, int | float) and value < 0
        require(not is_negative, f"optimizer.{key}", value, "must be >= 0")
