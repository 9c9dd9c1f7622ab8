"""Commands to type: what was typed, and how to go on from a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

ONCE = ("run_dir=", "resume=", "ckpt_path=", "init_from=")  # a restart sets these for itself
PATH_IN_QUOTES = re.compile(r"^([\w.]+=)'([^'\\]*)'$")  # as the command line gives paths to Hydra


def typed_overrides() -> list[str]:
    """The overrides of the command line; none when called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def resume_command(run_dir: Path, *more: str) -> str:
    """What to type to go on with a run that was started by this command line."""
    return train_command(f"hydra.run.dir={short(run_dir)}", "resume=auto", *more)


def train_command(*words: str) -> str:
    """This command line again, with ``words`` in the place of where it began and ended."""
    replaced = (*ONCE, *(f"{word.partition('=')[0]}=" for word in words))
    kept = [word for word in typed_overrides() if not word.startswith(replaced)]
    again = [PATH_IN_QUOTES.sub(r"\1\2", word) for word in kept]
    return f"python -m src.train {' '.join(map(shlex.quote, [*again, *words]))}"


def short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
