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

OF_RUN = (
    "sampler",
    "features",
    "metric",
    "dataset",
)  # what sample and evaluate may change of a run
COPIES = {  # where a resolved configuration holds a node a second time: it was an interpolation
    "sampler": "model.sampler",
    "dataset.root": "dataset.load.root",
}


def run_config(config: dict[str, Any], overrides: list[str]) -> DictConfig:
    """The configuration of a run with overrides: ``sampler=heun`` replaces the node by conf/sampler/heun.yaml.

    Dotted overrides (``sampler.num_steps=20``) are set on the result. Of the data set only ``dataset.root`` may
    change. Raises ConfigError for anything else.
    """
    cfg = OmegaConf.create(config)
    for word, key, value in sorted(map(_parse, overrides), key=lambda item: "." in item[1]):
        if key.startswith("dataset") and key != "dataset.root":
            raise ConfigError(f"{word}: of the run's data set only dataset.root can be changed")
        if "." not in key:
            _replace_group(cfg, key, str(value))
        elif (
            OmegaConf.select(cfg, key.rpartition(".")[0]) is None
            or key.split(".")[1] not in cfg[key.split(".")[0]]
        ):
            settings = ", ".join(
                k for k in cfg.get(key.split(".")[0]) or {} if not k.startswith("_")
            )
            raise ConfigError(
                f"{word}: there is no setting {key!r}; there are {settings or 'none (the run has no such node)'}"
            )
        else:
            OmegaConf.update(cfg, key, value)
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


def _replace_group(cfg: DictConfig, group: str, option: str) -> None:
    if group not in cfg:
        raise ConfigError(
            f"{group}={option}: the run's model ({cfg.model._target_}) has no {group}"
        )
    try:
        node = compose(overrides=[f"+{group}={option}"])[group]
    except MissingConfigException as error:
        raise ConfigError(
            f"{group}={option}: no such option; there are {', '.join(error.options or [])}"
        ) from error
    with open_dict(cfg):
        cfg[group] = OmegaConf.to_container(node, resolve=False)
        try:
            OmegaConf.resolve(cfg[group])
        except OmegaConfBaseException as error:
            raise ConfigError(f"{group}={option}: {first_line(error)}") from error
