"""The run directory: made, locked, logged to, and left behind only where something was saved."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.output import Plain
from src.config.rank import is_first
from src.errors import ConfigError, StorageError
from src.files import write_text
from src.rundir import lock

log = logging.getLogger(__name__)

RESULTS = ("checkpoints", "samples", "metrics.csv")  # what makes a run directory worth keeping


@contextmanager
def run_directory(cfg: DictConfig, config: dict[str, Any], resumed: bool) -> Iterator[Path]:
    """Create and lock ``cfg.run_dir``, with ``config.yaml`` and ``train.log``.

    A run that fails before anything was saved leaves no directory behind. Raises ConfigError when
    the directory already holds something, StorageError when it cannot be made or a live run is in
    it.

    Arguments:
        cfg: the composed configuration.
        config: the resolved one, see ``plain``; that of an earlier part of the run is kept as
            config-<k>.yaml.
        resumed: whether an earlier part of the run may be in it.
    """
    directory = Path(cfg.run_dir)
    _make(directory, "hydra.run.dir")
    try:
        with lock.locked(directory):
            _refuse_used(directory, resumed)  # before anything could be deleted
            with _emptied_on_failure(directory, resumed):
                keep_earlier(directory / "config.yaml")
                text = OmegaConf.to_yaml(OmegaConf.create(config))
                write_text(directory / "config.yaml", text)
                with _logged_to(directory / "train.log"):
                    yield directory
    finally:
        with suppress(OSError):
            directory.rmdir()  # where it is empty


def check_free(directory: Path, resumed: bool) -> None:
    """Raise early what ``run_directory`` would: ConfigError or StorageError where a run is in it.

    Rank 0 speaks for all: further ranks may start when it has made the directory.
    """
    if directory.is_dir() and is_first():
        with suppress(OSError):  # removed by now, or nothing that can be read: see below
            lock.check_free(directory)
            _refuse_used(directory, resumed)


def _refuse_used(directory: Path, resumed: bool) -> None:
    """Refuse a directory that an earlier run already uses."""
    if not resumed and _content(directory):
        advice = "choose another, or resume=auto to go on in it"
        raise ConfigError(f"hydra.run.dir={directory}: already in use; {advice}")


@contextmanager
def _emptied_on_failure(directory: Path, resumed: bool) -> Iterator[None]:
    """Delete what a new run leaves that has saved nothing."""
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
    """Write what is logged to a file as well, with times in UTC.

    Raises StorageError where something else is in its place: a pipe would be waited for for ever.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StorageError(f"cannot write {path}: it is no regular file; remove it")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Plain("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
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
    """Raise StorageError ``name=directory: ...`` unless 4 KB can be written below it."""
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


def keep_earlier(*paths: Path) -> None:
    """Set files of an earlier part aside: ``metrics.csv`` becomes ``metrics-1.csv``, ``-2``.

    Several get the same number, which none of them has had.
    """
    there = [path for path in paths if path.exists()]
    numbers = [number for path in paths for number in _set_aside(path)] if there else []
    for path in there:
        path.rename(path.with_stem(f"{path.stem}-{1 + max(numbers, default=0)}"))


def _set_aside(path: Path) -> Iterator[int]:
    """The numbers of its earlier parts."""
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        number = re.fullmatch(r"-([0-9]{1,9})", other.stem.removeprefix(path.stem))
        if number:
            yield int(number[1])


def output_directory(directory: Path, overwrite: bool) -> None:
    """Make the directory for samples.

    Raises ConfigError when it holds something and ``overwrite`` is false, StorageError when it
    cannot be written.
    """
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(
            f"output={directory}: already holds files; choose another directory, or overwrite=true"
        )
    check_writable(directory, "output")
    _make(directory, "output")
