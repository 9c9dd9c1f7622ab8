"""Whether a checkpoint belongs to the run that is described: the settings that its weights depend on must be equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.comparison.runs import option_of, typed
from src.errors import ConfigError
from src.config.settings import flat, setting_of
from src.rundir.resume import Start

MUST_STAY = (  # everything else may change: how long, where, what is measured, logged, drawn and kept
    *("seed", "model", "dataset", "optimizer", "lr_schedule", "callback.ema"),
    *(
        "trainer.accumulate_grad_batches",
        "trainer.gradient_clip_val",
        "trainer.limit_train_batches",
    ),
)
MAY_CHANGE = ("model.sampler", "dataset.root", "dataset.load.root", "dataset.max_steps")
MAY_CHANGE += ("dataset.num_workers", "dataset.worker_timeout")
TARGET = "._target_"
SHOWN = 10  # differences; each value with at most 60 characters


def check_same_run(cfg: DictConfig, start: Start) -> None:
    """Raise ConfigError with the differences when ``start`` restores the state of a run with other settings."""
    if start.path is None:
        return
    raw = OmegaConf.to_container(cfg, resolve=False)
    try:
        now = _kept(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return  # the model cannot be built, which says more
    found = _differences(raw, _kept(start.content["config"]), now)
    if found:
        own = start.is_within(Path(cfg.run_dir))
        asked, origin = (
            ("resume=auto", cfg.run_dir) if own else (f"ckpt_path={cfg.ckpt_path}", cfg.ckpt_path)
        )
        listed = ", ".join(found[:SHOWN]) + (
            f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        )
        raise ConfigError(
            f"{asked}: the checkpoint was made with other settings: {listed}; "
            f"give the same, or init_from={origin} for a new run from its weights"
        )


def _differences(raw: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``model.latent_dim 16 -> 32``, each by the name that is typed; of another object only that it is another."""
    found: dict[str, str] = {}
    others: tuple[str, ...] = ()
    for path in sorted(
        now.keys() | then.keys(),
        key=lambda name: (name.count("."), not name.endswith(TARGET), name),
    ):
        old, new = then.get(path), now.get(path)
        if old == new or path.startswith(others):
            continue
        if path.endswith(TARGET):
            others += (path.removesuffix(TARGET) + ".",)
            old, new = (target and option_of({"_target_": str(target)}) for target in (old, new))
        name, _ = setting_of(raw, path.removesuffix(TARGET))
        found.setdefault(name, f"{name} {_short(old)} -> {_short(new)}")
    return list(found.values())


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
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
