"""Where a run begins: from nothing, from the state of a run, or from its weights alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from src.rundir.checkpoint import find_checkpoint, load_weights, read_checkpoint
from src.errors import ConfigError, require
from src.files import atomic_path
from src.model.base import GenerativeModel
from src.rundir.store import CheckpointStore

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """path: checkpoint whose whole state is restored, or None. content: checkpoint that must fit the model, or None."""

    path: Path | None = None
    content: dict[str, Any] | None = None
    resumes: bool = False  # the run directory may be in use already

    @property
    def step(self) -> int:
        """The optimiser step that training goes on from."""
        return 0 if self.path is None else self.content["global_step"]

    def is_within(self, run_dir: Path) -> bool:
        """Whether the state that is restored is the run's own."""
        return self.path is not None and self.path.resolve().is_relative_to(run_dir.resolve())

    def bring_along(self, run_dir: Path) -> None:
        """Copy the history and the best checkpoint of the run that another directory goes on from."""
        if self.path is None or self.is_within(run_dir) or self.path.parent.name != "checkpoints":
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
            log.warning(
                "nothing left to train: the checkpoint is at trainer.max_steps=%d or beyond",
                max_steps,
            )


def starting_point(cfg: DictConfig) -> Start:
    """Read ``resume``, ``ckpt_path`` and ``init_from``.

    resume=auto goes on in a run directory that holds a checkpoint. Else the run is new: from the full state of another
    run (ckpt_path), from (averaged) weights alone (init_from), or from nothing. Raises ConfigError for both of them.
    """
    require(cfg.resume in (None, "auto"), "resume", cfg.resume, "must be auto or null")
    resumes = cfg.resume == "auto"
    if cfg.ckpt_path is not None and cfg.init_from is not None:
        both = f"ckpt_path={cfg.ckpt_path} and init_from={cfg.init_from}"
        raise ConfigError(f"{both}: give only one: the full state of a run, or its weights alone")
    if resumes and CheckpointStore(Path(cfg.run_dir) / "checkpoints").candidates():
        return _full_state(find_checkpoint(cfg.run_dir, "resume=auto hydra.run.dir"), resumes)
    if cfg.init_from is not None:
        return Start(content=read_checkpoint(cfg.init_from, "init_from"), resumes=resumes)
    if cfg.ckpt_path is not None:
        return _full_state(find_checkpoint(cfg.ckpt_path), resumes)
    return Start(resumes=resumes)


def _full_state(path: Path, resumes: bool) -> Start:
    content = read_checkpoint(path)
    log.info("continuing from %s (step %d)", path, content["global_step"])
    return Start(path, content, resumes)
