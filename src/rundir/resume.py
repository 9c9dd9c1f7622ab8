"""Where a run begins: from nothing, from the state of a run of equal settings, or from weights."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.settings import setting_of
from src.config.words import flat, option_of, typed
from src.errors import ConfigError, require
from src.files import atomic_path
from src.model.base import GenerativeModel
from src.rundir.checkpoint import find_checkpoint, load_weights, read_checkpoint
from src.rundir.directory import check_free, check_writable
from src.rundir.history import history_files
from src.rundir.store import CheckpointStore

log = logging.getLogger(__name__)

MUST_STAY = (  # everything else may change: how long, where, what is measured, logged and kept
    *("seed", "model", "dataset", "optimizer", "lr_schedule", "callback.ema"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
    "trainer.limit_train_batches",
)
MAY_CHANGE = ("model.sampler", "dataset.root", "dataset.load.root", "dataset.max_steps")
MAY_CHANGE += ("dataset.num_workers", "dataset.worker_timeout")
MAY_CHANGE += ("optimizer.fused", "optimizer.foreach")  # how, not what, is computed
TARGET = "._target_"
PRECISION = "trainer.precision"
SHOWN = 10  # differences; each value with at most 60 characters


class Start(NamedTuple):
    """What a run begins with.

    Arguments:
        path: checkpoint whose whole state is restored, or None.
        content: of the checkpoint that must fit the model, or None.
        resumes: whether an earlier part of the run may be in the run directory.
    """

    path: Path | None = None
    content: dict[str, Any] | None = None
    resumes: bool = False

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
        for part in history_files(source):
            shutil.copyfile(part, run_dir / part.name)
        store = CheckpointStore(source / "checkpoints")
        for step in store.steps("best"):
            best = store.path(step, "best")
            if step <= self.step:
                (run_dir / "checkpoints").mkdir(exist_ok=True)
                with atomic_path(run_dir / "checkpoints" / best.name) as temporary:
                    shutil.copyfile(best, temporary)

    def give_weights(self, model: GenerativeModel) -> None:
        """Load the weights; where the whole state is restored later, check that they fit."""
        if self.content is not None:
            load_weights(model, self.content)

    def warn_if_done(self, max_steps: int) -> None:
        """Say so where the state is already at the last step."""
        if self.path is not None and 0 < max_steps <= self.content["global_step"]:
            why = "the checkpoint is at trainer.max_steps=%d or beyond"
            log.warning(f"nothing left to train: {why}", max_steps)


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


def _check_same_run(cfg: DictConfig, start: Start) -> None:
    """Raise ConfigError where ``start`` restores the state of a run with other settings."""
    if start.path is None:
        return
    raw = OmegaConf.to_container(cfg, resolve=False)
    try:
        now = _kept(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return  # the model cannot be built, which says more
    found = _differences(raw, _kept(start.content["config"]), now)
    if not found:
        return
    asked, origin = f"ckpt_path={cfg.ckpt_path}", cfg.ckpt_path
    if start.is_within(Path(cfg.run_dir)):
        asked, origin = "resume=auto", cfg.run_dir
    listed = ", ".join(found[:SHOWN])
    if len(found) > SHOWN:
        listed += f" and {len(found) - SHOWN} more"
    advice = f"give the same, or init_from={origin} for a new run from its weights"
    why = f"the checkpoint was made with other settings: {listed}"
    raise ConfigError(f"{asked}: {why}; {advice}")


def _differences(raw: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
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
