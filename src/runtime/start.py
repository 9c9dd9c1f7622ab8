"""Where a run begins: from nothing, from the state of a run, or from its weights alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from src.checkpoint import find_checkpoint, load_weights, read_checkpoint
from src.errors import ConfigError, require
from src.files import atomic_path
from src.model.base import GenerativeModel
from src.store import CheckpointStore

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """path: checkpoint whose whole state is restored, or None. content: checkpoint that must fit the model, or None."""

    path: Path | None = None
    content: dict[str, Any] | None = None
    resumes: bool = False  # goes on in a run directory that may be in use

    @property
    def step(self) -> int:
        """The optimiser step that training goes on from."""
        return 0 if self.path is None else self.content["global_step"]

    def bring_along(self, run_dir: Path) -> None:
        """Copy the history and the best checkpoint of the run that another directory goes on from."""
        if self.path is None or self.resumes or self.path.parent.name != "checkpoints":
            return
        source = self.path.resolve().parents[1]
        for part in source.glob("metrics*.csv"):
            shutil.copyfile(part, run_dir / part.name)
        for best in (source / "checkpoints").glob("best-*.ckpt"):
            if int(best.stem.partition("-")[2]) <= self.step:
                (run_dir / "checkpoints").mkdir(exist_ok=True)
                with atomic_path(run_dir / "checkpoints" / best.name) as temporary:
                    shutil.copyfile(best, temporary)

    def give_weights(self, model: GenerativeModel) -> None:
        """Load the weights; where the whole state is restored later, this checks that the checkpoint fits."""
        if self.content is not None:
            load_weights(model, self.content)

    def warn_if_done(self, max_steps: int) -> None:
        """Say so where the state is already at the last step."""
        if self.path is not None and 0 < max_steps <= self.content["global_step"]:
            log.warning("nothing left to train: the checkpoint is at trainer.max_steps=%d or beyond", max_steps)


def starting_point(cfg: DictConfig) -> Start:
    """Read ``resume``, ``ckpt_path`` and ``init_from``; at most one of them may be set.

    resume=auto goes on in the same run directory and starts afresh where it holds no checkpoint; ckpt_path begins a
    new run directory from the full state of a run; init_from takes the (averaged) weights alone.
    """
    chosen = [f"{key}={cfg[key]}" for key in ("resume", "ckpt_path", "init_from") if cfg[key] is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: give only one of resume, ckpt_path and init_from")
    if cfg.init_from is not None:
        return Start(content=read_checkpoint(cfg.init_from, "init_from"))
    if cfg.ckpt_path is not None:
        return _full_state(find_checkpoint(cfg.ckpt_path))
    require(cfg.resume in (None, "auto"), "resume", cfg.resume, "must be auto or null")
    if cfg.resume == "auto" and CheckpointStore(Path(cfg.run_dir) / "checkpoints").candidates():
        return _full_state(find_checkpoint(cfg.run_dir, "resume=auto hydra.run.dir"))._replace(resumes=True)
    return Start(resumes=cfg.resume == "auto")


def _full_state(path: Path) -> Start:
    content = read_checkpoint(path)
    log.info("continuing from %s (step %d)", path, content["global_step"])
    return Start(path, content)
