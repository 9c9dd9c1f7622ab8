"""The run directory, and the configuration of a run that exists."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from src.rundir import lock
from src.config.cli import literal

log = logging.getLogger(__name__)

OF_RUN = (
    "sampler",
    "features",
    "metric",
    "dataset",
)  # what sample and evaluate may change of a run
COPIES = {  # where a resolved configuration holds a node a second time, because it was an interpolation
    "sampler": "model.sampler",
    "dataset.root": "dataset.load.root",
}
RESULTS = ("checkpoints", "samples", "metrics.csv")  # what makes a run directory worth keeping
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def run_directory(cfg: DictConfig, config: dict[str, Any], resumed: bool) -> Iterator[Path]:
    """Create and lock ``cfg.run_dir``, with ``config.yaml`` and ``train.log``; a resumed run may find things in it.

    config: the resolved configuration, see ``plain``; that of an earlier part of the run is kept as config-<k>.yaml.
    A run that fails before anything was saved leaves no directory behind. Raises ConfigError when the directory
    already holds something, StorageError when it cannot be made or a live run is in it.
    """
    directory = Path(cfg.run_dir)
    _make(directory, "hydra.run.dir")
    try:
        with lock.locked(directory), _emptied_on_failure(directory, resumed):
            keep_earlier(directory / "config.yaml")
            write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            with _logged_to(directory / "train.log"):
                yield directory
    finally:
        with suppress(OSError):
            directory.rmdir()  # where it is empty


@contextmanager
def _emptied_on_failure(directory: Path, resumed: bool) -> Iterator[None]:
    """Refuse what is in use by a run of old; delete what a new run leaves that has saved nothing."""
    if not resumed and _content(directory):
        raise ConfigError(
            f"hydra.run.dir={directory}: already in use; choose another, or resume=auto to go on in it"
        )
    try:
        yield
    except BaseException:
        if not resumed and not any((directory / name).exists() for name in RESULTS):
            for path in _content(directory):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        raise


def _content(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name != lock.NAME]


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Write what is logged to a file as well, with times in UTC."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    )
    handler.formatter.converter = time.gmtime
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException as error:  # the terminal gets one line
        handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, "%s", (error,), sys.exc_info()))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):  # a full disk has been told of
            handler.close()


def _make(directory: Path, name: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{name}={directory}: cannot be made ({error.strerror})") from error


def check_writable(directory: Path, name: str) -> None:
    """Raise StorageError ``name=directory: ...`` unless 4 KB can be written below it; leaves nothing behind."""
    place = directory
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = f"nothing can be written in {place} ({error.strerror})"
        raise StorageError(
            f"{name}={directory}: {why}; choose another directory, or make room in it"
        ) from error


def keep_earlier(path: Path) -> None:
    """Set a file of an earlier part of the run aside: ``metrics.csv`` becomes ``metrics-1.csv``, then ``-2``."""
    if path.exists():
        earlier = (
            other.stem.rpartition("-")[2]
            for other in path.parent.glob(f"{path.stem}-*{path.suffix}")
        )
        number = 1 + max((int(number) for number in earlier if number.isdecimal()), default=0)
        path.rename(path.with_stem(f"{path.stem}-{number}"))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, with the version that ran and the command line."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return content | {
        "provenance": {"version": _version(), "git": _git_hash(), "overrides": typed_overrides()}
    }


def typed_overrides() -> list[str]:
    """The overrides of the command line; none when called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def output_directory(directory: Path, overwrite: bool) -> None:
    """Make the directory for samples.

    Raises ConfigError when it holds something and ``overwrite`` is false, StorageError when it cannot be written.
    """
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(
            f"output={directory}: already holds files; choose another directory, or overwrite=true"
        )
    check_writable(directory, "output")
    _make(directory, "output")


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
            [*git, "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
