"""The configuration of a run that exists, with overrides."""

from __future__ import annotations

from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.config.cli import literal
from src.errors import ConfigError, first_line

# what sample and evaluate may change of a run
OF_RUN = ("sampler", "features", "metric", "dataset")
COPIES = {  # where a resolved configuration holds a node a second time: it was an interpolation
    "sampler": "model.sampler",
    "dataset.root": "dataset.load.root",
}


def run_config(config: dict[str, Any], overrides: list[str]) -> DictConfig:
    """The configuration of a run with overrides.

    ``sampler=heun`` replaces the node by conf/sampler/heun.yaml; dotted overrides
    (``sampler.num_steps=20``) are set on the result. Of the data set only ``dataset.root`` may
    change. Raises ConfigError for anything else.
    """
    cfg = OmegaConf.create(config)
    for word, key, value in sorted(map(_parse, overrides), key=lambda item: "." in item[1]):
        if key.startswith("dataset") and key != "dataset.root":
            raise ConfigError(f"{word}: of the run's data set only dataset.root can be changed")
        if "." in key:
            _check_exists(cfg, word, key)
            OmegaConf.update(cfg, key, value)
        else:
            _replace_group(cfg, key, str(value))
    for origin, copy in COPIES.items():
        value = OmegaConf.select(cfg, origin)
        if value is not None and OmegaConf.select(cfg, copy) is not None:
            OmegaConf.update(cfg, copy, value, merge=False)
    return cfg


def _parse(word: str) -> tuple[str, str, Any]:
    try:
        override = OverridesParser.create().parse_override(literal(word))
    except OverrideParseException as error:
        raise ConfigError(f"{word}: {first_line(error)}") from error
    return word, override.key_or_group, override.value()


def _check_exists(cfg: DictConfig, word: str, key: str) -> None:
    """Raise ConfigError where the run has no setting ``key``."""
    group, setting = key.split(".")[:2]
    if OmegaConf.select(cfg, key.rpartition(".")[0]) is None or setting not in cfg[group]:
        known = [name for name in cfg.get(group) or {} if not name.startswith("_")]
        there = ", ".join(known) or "none (the run has no such node)"
        raise ConfigError(f"{word}: there is no setting {key!r}; there are {there}")


def _replace_group(cfg: DictConfig, group: str, option: str) -> None:
    if group not in cfg:
        why = f"the run's model ({cfg.model._target_}) has no {group}"
        raise ConfigError(f"{group}={option}: {why}")
    try:
        node = compose(overrides=[f"+{group}={option}"])[group]
    except MissingConfigException as error:
        there = ", ".join(error.options or [])
        raise ConfigError(f"{group}={option}: no such option; there are {there}") from error
    with open_dict(cfg):
        cfg[group] = OmegaConf.to_container(node, resolve=False)
        try:
            OmegaConf.resolve(cfg[group])
        except OmegaConfBaseException as error:
            raise ConfigError(f"{group}={option}: {first_line(error)}") from error
