"""The one wrapper of ``hydra.main``: literal paths, one-line errors, exit codes.

Nothing heavy is imported here: ``--help`` and ``--cfg job`` answer before torch would have been
read.
"""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from src.config.command import check_places
from src.config.explain import explain
from src.config.options import split_options
from src.config.origin import keep_sources
from src.config.output import Patient, quiet_logging
from src.config.quick import collect_garbage
from src.config.rank import is_first
from src.config.references import CONF, as_referred
from src.config.run_config import Inside, on_run
from src.config.secrecy import masked, refuse_composed, refuse_secrets
from src.config.threads import choose_threads
from src.config.unread import check_read
from src.config.untrusted import check_trusted
from src.config.words import quoted
from src.errors import (
    ConfigError,
    Interrupted,
    NonFiniteError,
    ProjectError,
    first_line,
    require,
)
from src.foreign import printable

RUN_DIR = "hydra.run.dir"
FULL_ERROR = "GENBENCH_FULL_ERROR"  # the user's HYDRA_FULL_ERROR, which is always set for Hydra
LITERAL = {RUN_DIR, "hydra.sweep.dir", "run_dir", "ckpt_path", "init_from", "output", "cache_dir"}
LITERAL |= {"dataset.root", "features.weights"}

keep_sources()
# both without nested braces or empty parentheses, for which OmegaConf would start its slow parser
OmegaConf.register_new_resolver("suffix", secrets.token_hex, use_cache=True, replace=True)
OmegaConf.register_new_resolver("cache", lambda name: str(_caches() / name), replace=True)


def run(
    task: Callable[[DictConfig], Any],
    config_name: str,
    listening: Callable[[], AbstractContextManager[None]],
    inside: Inside,
) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line, call ``task(cfg)``, and exit.

    Where the command line names a run, its configuration is the base (src/config/run_config.py).
    The exit code says why: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 input/output, 6
    non-finite, 7 out of memory, 8 worker lost, 130 and 143 interrupted, 1 a defect of this program
    (with a traceback; ``HYDRA_FULL_ERROR=1`` shows it for every error).

    Arguments:
        task: what is done with the configuration.
        config_name: of the primary configuration.
        listening: context in which signals are handled.
        inside: reads the configuration inside a checkpoint.
    """
    is_training = config_name == "train"
    job = _job(task, is_training)
    with _hydra_raises() as traced:
        try:
            options, words = split_options(sys.argv[1:])
            words = words if is_training else _without_run_dir(words)
            refuse_secrets(words)
            if not is_training and "--multirun" in options:
                why = "only src.train takes it; give one run after the other"
                raise ConfigError(f"--multirun: {why}")
            config_name, words = on_run(config_name, [*map(as_referred, words)], inside)
            sys.argv[1:] = [*options, *map(literal, words)]
            compose = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            out, err = Patient(sys.stdout), Patient(sys.stderr)
            with listening(), redirect_stdout(out), redirect_stderr(err):
                compose(job)()
        except BaseException as ended:
            sys.exit(_report(ended, config_name, traced))


def _caches() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "."), ".cache"))


def _job(task: Callable[[DictConfig], Any], is_training: bool) -> Callable[[DictConfig], Any]:
    """What Hydra calls with the composed configuration: ``task``, its place named."""

    def job(cfg: DictConfig) -> Any:  # noqa: ANN401
        collect_garbage()
        quiet_logging()
        if is_training:
            with open_dict(cfg):
                _place_run(cfg)
        devices = OmegaConf.select(cfg, "trainer.devices")
        choose_threads(ranks=devices if isinstance(devices, int) else 1)
        try:
            _check_trust(cfg)
            refuse_composed(cfg)
            check_places(HydraConfig.get())
            check_read(cfg, HydraConfig.get().overrides.task)
            return task(cfg)
        except Exception as error:
            raise _Ended from error

    return job


def _check_trust(cfg: DictConfig) -> None:
    """Raise ConfigError where another than who types it says what is trusted."""
    check_trusted(cfg.trusted_packages)
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    by_hand = any(word.lstrip("+").startswith("trusted_packages=") for word in typed)
    allowed = "is typed on the command line, not set in a file"
    require(by_hand or not cfg.trusted_packages, "trusted_packages", cfg.trusted_packages, allowed)


@contextmanager
def _hydra_raises() -> Iterator[bool]:
    """Have Hydra raise errors as they are; gives whether the user asked for every traceback."""
    asked = os.environ.get(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ[FULL_ERROR] = asked  # for the processes of further ranks
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield asked not in ("", "0")
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked
        os.environ.pop(FULL_ERROR)


def _report(ended: BaseException, config_name: str, traced: bool) -> int:
    """Print in one line what ended the program, a defect with traceback; return the exit code."""
    error = ended.__cause__ if isinstance(ended, _Ended) else ended
    if isinstance(ended, ValueError) and not isinstance(ended, ProjectError):
        advice = "a group of several options is emptied with group=[]"
        error = ConfigError(f"{first_line(ended)} ({advice})")  # Hydra's, of the composition
    code, message = explain(error, CONF, config_name, sys.argv[1:])
    if traced or code == 1:
        lines = "".join(traceback.format_exception(error))
        print(printable(masked(lines), keep="\n"), end="", file=sys.stderr)
    by_rank_0 = not is_first() and isinstance(error, Interrupted | NonFiniteError)
    if message and not by_rank_0:
        print(f"error: {printable(masked(message))}", file=sys.stderr)
    return code


class _Ended(BaseException):
    """Carries an error of the task past Hydra, which would print a line of its own."""


def _without_run_dir(words: list[str]) -> list[str]:
    """Lightning gives further ranks a run directory, which not every entry point has."""
    if "LOCAL_RANK" not in os.environ:
        return words
    return [word for word in words if not word.startswith(f"{RUN_DIR}=")]


def literal(word: str) -> str:
    """Quote the value of a path setting: Hydra's grammar then takes any letter literally.

    ``hydra.run.dir`` becomes ``run_dir``: Hydra itself would create the directory before anything
    is checked. ``launcher.jobs`` becomes ``hydra.launcher.jobs``: how jobs are started is no
    setting of theirs.
    """
    if word.startswith("launcher."):
        return f"hydra.{word}"
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in LITERAL or value in ("", "null"):
        return word
    key = key.replace(RUN_DIR, "run_dir")
    if value[0] == value[-1] and value[0] in "'\"" and len(value) > 1:
        return f"{key}={value}"
    return f"{key}={quoted(value)}"


def _place_run(cfg: DictConfig) -> None:
    """Fix the run directory: as asked, or new."""
    hydra_config = HydraConfig.get()
    cfg.run_dir = str(Path(cfg.run_dir).expanduser().resolve())
    with read_write(hydra_config), open_dict(hydra_config):
        hydra_config.run.dir = cfg.run_dir  # Lightning passes it to the processes of further ranks
