"""In what a run's settings differ from those that a checkpoint was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.settings import setting_of
from src.config.untrusted import BUILT, check_config
from src.config.words import flat, option_of, typed
from src.errors import ConfigError, first_line

MUST_STAY = (  # everything else may change: how long, where, what is measured, logged and kept
    *("seed", "model", "dataset", "optimizer", "lr_schedule", "callback.ema"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
    "trainer.limit_train_batches",
)
MAY_CHANGE = ("model.sampler", "dataset.root", "dataset.load.root", "dataset.max_steps")
MAY_CHANGE += ("dataset.num_workers", "dataset.worker_timeout")
MAY_CHANGE += ("optimizer.fused", "optimizer.foreach")  # how, not what, is computed
TARGET = "._target_"
SHOWN = 10  # changes; each value with at most 60 characters


def model_of(cfg: DictConfig, content: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved node of the model that is evaluated or sampled.

    Raises ConfigError where it is not the run's own, or its data are not.

    Arguments:
        cfg: composed on the run.
        content: of its checkpoint.
    """
    try:
        built = {group: cfg[group] for group in BUILT if group in cfg}
        nodes = {group: OmegaConf.to_container(node, resolve=True) for group, node in built.items()}
        check_config(nodes, cfg.trusted_packages)
    except ValueError as error:
        raise ConfigError(f"the configuration {first_line(error)}") from error
    own = {node: content["config"][node] for node in ("model", "dataset")}
    now = {node: OmegaConf.to_container(cfg[node], resolve=True) for node in own}
    found = changes(OmegaConf.to_container(cfg, resolve=False), kept(own), kept(now))
    if found:
        why = "of the run itself sampler, features, metric and dataset.root can be changed"
        raise ConfigError(f"{listed(found)}: {why}")
    return now["model"]


def listed(found: Sequence[str]) -> str:
    """The first of some changes, and how many more there are."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def changes(raw: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``model.latent_dim 16 -> 32``, each by the name that is typed.

    Of an object of another class only that it is another.
    """
    found: dict[str, str] = {}
    replaced: tuple[str, ...] = ()
    for path in sorted(now.keys() | then.keys(), key=_from_above):
        old, new = then.get(path), now.get(path)
        if old == new or path.startswith(replaced):
            continue
        setting = path.removesuffix(TARGET)
        if path.endswith(TARGET):
            replaced += (f"{setting}.",)
            old, new = _option(old), _option(new)
        name, _ = setting_of(raw, setting)
        found.setdefault(name, f"{name} {_short(old)} -> {_short(new)}")
    return list(found.values())


def _from_above(path: str) -> tuple[int, bool, str]:
    """Order in which a node's class comes before what the node holds."""
    return path.count("."), not path.endswith(TARGET), path


def _option(target: object) -> str | None:
    return option_of({"_target_": str(target)}) if target else None


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must stay: name and value."""
    return {
        name: value
        for name, value in flat(config)
        if _is_in(name, MUST_STAY) and not _is_in(name, MAY_CHANGE)
    }


def _is_in(name: str, nodes: tuple[str, ...]) -> bool:
    """Whether a setting is one of ``nodes``, or lies in one."""
    return f"{name}.".startswith(tuple(f"{node}." for node in nodes))


def _short(value: object) -> str:
    text = " ".join(typed(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
