"""Where a run begins: from nothing, from the state of a run of equal settings, or from weights."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.words import flat
from src.errors import CheckpointError, ConfigError, require
from src.files import atomic_path, open_regular
from src.model.base import GenerativeModel
from src.rundir.changes import changes, kept, listed
from src.rundir.checkpoint import find_checkpoint, load_weights, read_checkpoint
from src.rundir.directory import check_free, check_writable
from src.rundir.history import MAX_HISTORY, histories
from src.rundir.store import CheckpointStore

log = logging.getLogger(__name__)

PRECISION = "trainer.precision"
BEST = 4  # the best checkpoint of a run is no larger than so many of another


class Start(NamedTuple):
    """What a run begins with.

    Arguments:
        path: checkpoint whose whole state is restored, or None.
        content: of the checkpoint that must fit the model, or None.
        resumes: whether an earlier part of the run may be in the run directory.
        changes: of the model's settings since, where weights alone are taken.
    """

    path: Path | None = None
    content: dict[str, Any] | None = None
    resumes: bool = False
    changes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The optimiser step that training goes on from."""
        return 0 if self.path is None else self.content["global_step"]

    @property
    def precision(self) -> str | None:
        """That of the run whose state is restored, where it is known."""
        return None if self.path is None else dict(flat(self.content["config"])).get(PRECISION)

    def is_within(self, run_dir: Path) -> bool:
        """Whether the state that is restored is the run's own."""
        return self.path is not None and self.path.resolve().is_relative_to(run_dir.resolve())

    def bring_along(self, run_dir: Path) -> None:
        """Copy history and best checkpoint of the run that another directory goes on from."""
        if self.path is None or self.is_within(run_dir) or self.path.parent.name != "checkpoints":
            return
        source = self.path.resolve().parents[1]
        most = BEST * self.path.stat().st_size
        for part in histories(source):
            _copy(part, run_dir / part.name, MAX_HISTORY)
        store = CheckpointStore(source / "checkpoints")
        for step in store.steps("best"):
            if step <= self.step:
                best = store.path(step, "best")
                _copy(best, run_dir / "checkpoints" / best.name, most)

    def give_weights(self, model: GenerativeModel) -> None:
        """Load the weights; where the whole state is restored later, check that they fit.

        Raises CheckpointError with the settings of the model that differ.
        """
        if self.content is None:
            return
        try:
            load_weights(model, self.content)
        except CheckpointError as error:
            if not self.changes:
                raise
            why = f"its weights do not fit a model with {listed(self.changes)}"
            raise CheckpointError(f"init_from: {why}; give the same as there") from error

    def warn_if_done(self, max_steps: int) -> None:
        """Say so where the state is already at the last step."""
        if self.path is not None and 0 < max_steps <= self.content["global_step"]:
            why = "the checkpoint is at trainer.max_steps=%d or beyond"
            log.warning(f"nothing left to train: {why}", max_steps)


def _copy(source: Path, target: Path, most: int) -> None:
    """Copy a file of a run that may be somebody else's; links, pipes and devices stay there.

    Raises CheckpointError naming the file, also where it has more than ``most`` bytes.
    """
    try:
        with (
            open_regular(source) as read,
            atomic_path(target) as temporary,
            open(temporary, "wb") as written,
        ):
            if os.fstat(read.fileno()).st_size > most:
                raise ValueError(f"has more than {most} bytes")
            shutil.copyfileobj(read, written)
    except ValueError as error:
        raise CheckpointError(f"ckpt_path={source}: {error}; remove it there") from error


def begin(cfg: DictConfig) -> Start:
    """Find where the run of ``cfg`` begins.

    Raises StorageError where its directory cannot be written or a live run is in it, ConfigError
    where an earlier one is, or where the state is of a run with other settings.
    """
    directory = Path(cfg.run_dir)
    check_writable(directory, "hydra.run.dir")
    start = _starting_point(cfg)
    check_free(directory, start.resumes)
    _check_same_run(cfg, start)
    return start


def _starting_point(cfg: DictConfig) -> Start:
    """Read ``resume``, ``ckpt_path`` and ``init_from``.

    resume=auto goes on in a run directory that holds a checkpoint. Else the run is new: from the
    full state of another run (ckpt_path), from (averaged) weights alone (init_from), or from
    nothing. Raises ConfigError for both of them.
    """
    require(cfg.resume in (None, "auto"), "resume", cfg.resume, "must be auto or null")
    resumes, trusted = cfg.resume == "auto", cfg.trusted_packages
    if cfg.ckpt_path is not None and cfg.init_from is not None:
        both = f"ckpt_path={cfg.ckpt_path} and init_from={cfg.init_from}"
        raise ConfigError(f"{both}: give only one: the full state of a run, or its weights alone")
    if resumes and CheckpointStore(Path(cfg.run_dir) / "checkpoints").candidates():
        found = find_checkpoint(cfg.run_dir, "resume=auto hydra.run.dir")
        return _full_state(found, resumes, trusted)
    if cfg.init_from is not None:
        content = read_checkpoint(cfg.init_from, "init_from", trusted)
        return Start(content=content, resumes=resumes, changes=_since(cfg, content))
    if cfg.ckpt_path is not None:
        return _full_state(find_checkpoint(cfg.ckpt_path), resumes, trusted)
    return Start(resumes=resumes)


def _since(cfg: DictConfig, content: dict[str, Any]) -> tuple[str, ...]:
    """How the model of ``cfg`` differs from that of a checkpoint, where it can be resolved."""
    try:
        now = {"model": OmegaConf.to_container(cfg.model, resolve=True)}
    except OmegaConfBaseException:
        return ()  # it cannot be built, which says more
    then = {"model": content["config"]["model"]}
    raw = OmegaConf.to_container(cfg, resolve=False)
    return tuple(changes(raw, kept(then), kept(now)))


def _full_state(path: Path, resumes: bool, trusted: Collection[str]) -> Start:
    content = read_checkpoint(path, trusted=trusted)
    log.info("continuing from %s (step %d)", path, content["global_step"])
    return Start(path, content, resumes)


def _check_same_run(cfg: DictConfig, start: Start) -> None:
    """Raise ConfigError where ``start`` restores the state of a run with other settings."""
    if start.path is None:
        return
    raw = OmegaConf.to_container(cfg, resolve=False)
    try:
        now = kept(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return  # the model cannot be built, which says more
    found = changes(raw, kept(start.content["config"]), now)
    if not found:
        return
    asked, origin = f"ckpt_path={cfg.ckpt_path}", cfg.ckpt_path
    if start.is_within(Path(cfg.run_dir)):
        asked, origin = "resume=auto", cfg.run_dir
    advice = f"give the same, or init_from={origin} for a new run from its weights"
    why = f"the checkpoint was made with other settings: {listed(found)}"
    raise ConfigError(f"{asked}: {why}; {advice}")
