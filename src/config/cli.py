"""The one wrapper of ``hydra.main``, for all entry points: literal paths, one-line errors, exit codes.

Nothing heavy is imported here: ``--help`` and ``--cfg job`` answer before torch would have been read.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from src.errors import ConfigError, NonFiniteError, ProjectError, first_line
from src.config.explain import explain
from src.training.interruption import INTERRUPTION, Interrupted, silence
from src.config.secrecy import refuse_secrets

CONF = Path(__file__).resolve().parents[2] / "conf"
RUN_DIR = "hydra.run.dir"
FULL_ERROR = "GENBENCH_FULL_ERROR"  # what the user asked for in HYDRA_FULL_ERROR, which is always set for Hydra
LITERAL = {RUN_DIR, "hydra.sweep.dir", "run_dir", "ckpt_path", "init_from", "output", "cache_dir"}
LITERAL |= {"dataset.root", "features.weights"}

OmegaConf.register_new_resolver(
    "suffix", lambda: secrets.token_hex(4), use_cache=True, replace=True
)


def run(task: Callable[[DictConfig], Any], config_name: str, of_run: tuple[str, ...] = ()) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line, call ``task(cfg)``, and exit with a code that tells.

    of_run: first words of overrides that concern the configuration of an existing run, not this one (``sampler`` for
    ``sample``); they are handed over unparsed as the list ``cfg.overrides``. Exit codes: 0 done, 2 configuration,
    3 data, 4 checkpoint, 5 input/output, 6 non-finite, 7 out of memory, 8 worker lost, 130 and 143 interrupted, 1 a
    defect of this program (with a traceback; ``HYDRA_FULL_ERROR=1`` shows it for every error).
    """
    asked = os.environ.get(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ[FULL_ERROR] = asked  # for the processes of further ranks
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are
    own, passed_on = split_overrides(sys.argv[1:], of_run)
    sys.argv[1:] = [literal(word) for word in own]

    def job(cfg: DictConfig) -> Any:  # noqa: ANN401
        quiet_logging()
        sys.argv[1:] = [
            *sys.argv[1:],
            *passed_on,
        ]  # Lightning starts further ranks with these words
        with open_dict(cfg):
            if of_run:
                cfg.overrides = passed_on
            else:
                _place_run(cfg)
        try:
            INTERRUPTION.give(cfg.get("grace_seconds", INTERRUPTION.grace))
            return task(cfg)
        except Exception as error:
            raise _Ended from error

    try:
        refuse_secrets([*own, *passed_on])
        if of_run and {"-m", "--multirun"} & {*own}:
            raise ConfigError("--multirun: only src.train takes it; give one run after the other")
        with INTERRUPTION.listening(), redirect_stdout(_Patient(sys.stdout)):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except BaseException as ended:
        sys.exit(_report(ended, config_name, of_run, traced=asked not in ("", "0")))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked
        os.environ.pop(FULL_ERROR)


def _report(ended: BaseException, config_name: str, of_run: tuple[str, ...], traced: bool) -> int:
    """Print what ended the program as one line, a defect with its traceback; return the exit code."""
    error = ended.__cause__ if isinstance(ended, _Ended) else ended
    if isinstance(ended, ValueError) and not isinstance(
        ended, ProjectError
    ):  # Hydra's, of the composition
        error = ConfigError(
            f"{first_line(ended)} (a group of several options is emptied with group=[])"
        )
    code, message = explain(error, CONF, config_name, sys.argv[1:], of_run)
    if traced or code == 1:
        traceback.print_exception(error)
    said = not is_first() and isinstance(error, Interrupted | NonFiniteError)  # by rank 0
    if message and not said:
        print(f"error: {message}", file=sys.stderr)
    return code


class _Ended(BaseException):
    """Carries an error of the task past Hydra, which would print a line of its own."""


def split_overrides(words: list[str], of_run: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Words for this entry point, and those of the run (``sampler=``, ``sampler.num_steps=``)."""
    passed_on = [
        word for word in words if re.split(r"[.=@]", word, maxsplit=1)[0] in of_run and "=" in word
    ]
    own = [word for word in words if word not in passed_on]
    if (
        of_run and "LOCAL_RANK" in os.environ
    ):  # Lightning tells further ranks a run directory that is not used here
        own = [word for word in own if not word.startswith(f"{RUN_DIR}=")]
    return own, passed_on


def literal(word: str) -> str:
    """Quote the value of a path setting so that Hydra's grammar takes ``=``, commas, blanks and any letter literally.

    ``hydra.run.dir`` becomes ``run_dir``: Hydra itself would create the directory before anything is checked.
    ``launcher.jobs`` becomes ``hydra.launcher.jobs``: how jobs are started is no setting of theirs.
    """
    if word.startswith("launcher."):
        return f"hydra.{word}"
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in LITERAL or value in ("", "null"):
        return word
    key = key.replace(RUN_DIR, "run_dir")
    if value[0] == value[-1] and value[0] in "'\"" and len(value) > 1:
        return f"{key}={value}"
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f"{key}='{escaped}'"


def is_first() -> bool:
    """Whether this process is rank 0, or the only one, as far as whoever has started it tells."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _place_run(cfg: DictConfig) -> None:
    """Fix the run directory: as asked, or new."""
    hydra_config = HydraConfig.get()
    cfg.run_dir = str(Path(cfg.run_dir).expanduser().resolve())
    with (
        read_write(hydra_config),
        open_dict(hydra_config),
    ):  # Lightning hands this directory to the processes of further ranks
        hydra_config.run.dir = cfg.run_dir


class _Patient:
    """Standard output whose reader may leave (``| head``): a training does not end for that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the stream has)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does, or to nowhere."""
        with self._heard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream does, or to nowhere."""
        with self._heard():
            self._stream.flush()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            silence([self._stream.fileno()])


class _Stdout(logging.StreamHandler):
    """Writes to whatever standard output is now: a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Follow ``sys.stdout``."""
        self.stream = sys.stdout
        super().emit(record)


def quiet_logging() -> None:
    """Plain messages on standard output; libraries only from warnings on, and so are further ranks."""
    logging.raiseExceptions = (
        False  # what cannot be told, on a full disk or a closed pipe, is no reason to fail
    )
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[_Stdout()], force=True
    )
    logging.getLogger("src").setLevel(logging.INFO if is_first() else logging.WARNING)
