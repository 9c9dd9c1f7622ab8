"""The run directory, and the configuration of a run that exists."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.errors import ConfigError, StorageError, first_line
from src.files import write_text

OF_RUN = ("sampler", "features", "metric", "dataset")  # what sample and evaluate may change of a run
COPIES = {  # where a resolved configuration holds a node a second time, because it was an interpolation
    "sampler": "model.sampler",
    "dataset.root": "dataset.load.root",
}
RESULTS = ("checkpoints", "samples", "metrics.csv")  # what makes a run directory worth keeping
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def run_directory(cfg: DictConfig, config: dict[str, Any], resumed: bool) -> Iterator[Path]:
    """Create ``cfg.run_dir`` with ``config.yaml`` and ``train.log``; only a resumed run may find it in use.

    config: the resolved configuration, see ``plain``; that of an earlier part of the run is kept as config-<k>.yaml.
    A run that fails before anything was saved leaves no directory behind. Raises ConfigError when the directory
    already holds something, StorageError when it cannot be made.
    """
    directory = Path(cfg.run_dir)
    if not resumed and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"hydra.run.dir={directory}: already in use; choose another, or resume=auto to go on in it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log_file = logging.FileHandler(directory / "train.log", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"hydra.run.dir={directory}: cannot be made ({error.strerror})") from error
    keep_earlier(directory / "config.yaml")
    write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(log_file)
    try:
        yield directory
    except BaseException:
        if not resumed and not any((directory / name).exists() for name in RESULTS):
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        logging.getLogger().removeHandler(log_file)
        log_file.close()


def keep_earlier(path: Path) -> None:
    """Set a file of an earlier part of the run aside: ``metrics.csv`` becomes ``metrics-1.csv``, then ``-2``."""
    if path.exists():
        number = 1 + len(list(path.parent.glob(f"{path.stem}-*{path.suffix}")))
        path.rename(path.with_stem(f"{path.stem}-{number}"))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, with the version that ran and the command line."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return content | {"provenance": {"version": _version(), "git": _git_hash(), "overrides": typed_overrides()}}


def typed_overrides() -> list[str]:
    """The overrides of the command line; none when called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def output_directory(directory: Path, overwrite: bool) -> None:
    """Make the directory for samples. Raises ConfigError when it holds something and ``overwrite`` is false."""
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"output={directory}: already holds files; choose another directory, or overwrite=true")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"output={directory}: cannot be made ({error.strerror})") from error


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
        elif OmegaConf.select(cfg, key.rpartition(".")[0]) is None or key.split(".")[1] not in cfg[key.split(".")[0]]:
            settings = ", ".join(k for k in cfg.get(key.split(".")[0]) or {} if not k.startswith("_"))
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
    if word.startswith("dataset.root="):
        return word, "dataset.root", word.partition("=")[2]
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException as error:
        raise ConfigError(f"{word}: {first_line(error)}") from error
    return word, override.key_or_group, override.value()


def _replace_group(cfg: DictConfig, group: str, option: str) -> None:
    if group not in cfg:
        raise ConfigError(f"{group}={option}: the run's model ({cfg.model._target_}) has no {group}")
    try:
        node = compose(overrides=[f"+{group}={option}"])[group]
    except MissingConfigException as error:
        raise ConfigError(f"{group}={option}: no such option; there are {', '.join(error.options or [])}") from error
    with open_dict(cfg):
        cfg[group] = OmegaConf.to_container(node, resolve=False)
        try:
            OmegaConf.resolve(cfg[group])
        except OmegaConfBaseException as error:
            raise ConfigError(f"{group}={option}: {first_line(error)}") from error


def _version() -> str:
    try:
        return version("genbench")
    except PackageNotFoundError:
        return "not installed"


def _git_hash() -> str | None:
    """Commit of the working tree, marked ``+`` where files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT)]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, env=environment
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True, env=environment
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
