"""Commands to type: what was typed, and how to go on from a run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config.words import quoted
from src.errors import require

OF_PRIMARY = ("--config-path=", "--config-name=")  # options of Hydra, as the command line has them
ONCE = ("run_dir=", "resume=", "ckpt_path=", "init_from=")  # a restart sets these for itself
PATH_IN_QUOTES = re.compile(r"^([\w.]+=)'([^'\\]*)'$")  # as the command line gives paths to Hydra


def typed_overrides() -> list[str]:
    """The overrides of the command line; none when called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def composing_words(hydra: DictConfig) -> list[str]:
    """The words that say where a composition looks for its files, for another process.

    Hydra does not count them among the overrides; relative places may mean another one there.

    Arguments:
        hydra: its node of the configuration.
    """
    words = [word for word in sys.argv[1:] if word.startswith(OF_PRIMARY)]
    searched: list[str] = []
    for source in hydra.runtime.config_sources:
        place = str(Path(source.path).resolve()) if source.schema == "file" else source.path
        if source.provider == "command-line":
            words.append(f"--config-dir={place}")
        elif source.provider == "hydra.searchpath in command-line":
            searched.append(quoted(f"{source.schema}://{place}"))
    return [*words, *([f"hydra.searchpath=[{','.join(searched)}]"] if searched else [])]


def check_places(hydra: DictConfig) -> None:
    """Raise ConfigError for a place of ``hydra.searchpath`` that is not there: Hydra goes on."""
    for source in hydra.runtime.config_sources:
        searched = source.schema == "file" and source.provider.startswith("hydra.searchpath")
        is_there = not searched or Path(source.path).is_dir()
        require(is_there, "hydra.searchpath", source.path, "must be a directory that is there")


def resume_command(run_dir: Path, *more: str) -> str:
    """What to type to go on with a run that was started by this command line."""
    return train_command(f"hydra.run.dir={short(run_dir)}", "resume=auto", *more)


def train_command(*words: str) -> str:
    """This command line again, with ``words`` in the place of where it began and ended."""
    replaced = (*ONCE, *(f"{word.partition('=')[0]}=" for word in words))
    kept = [word for word in typed_overrides() if not word.startswith(replaced)]
    again = [PATH_IN_QUOTES.sub(r"\1\2", word) for word in kept]
    places = composing_words(HydraConfig.get()) if HydraConfig.initialized() else []
    return f"python -m src.train {' '.join(map(shlex.quote, [*places, *again, *words]))}"


def short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
