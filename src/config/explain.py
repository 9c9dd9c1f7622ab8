"""From an exception to an exit code and one line that names the setting, its value and what is allowed."""

from __future__ import annotations

import difflib
import errno
import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.errors import (
    ConfigError,
    MemoryExhaustedError,
    ProjectError,
    StorageError,
    WorkerLostError,
    first_line,
)
from src.training.interruption import Interrupted

DEFECT = 1  # all other codes belong to the classes of src/errors.py, and to Interrupted


def explain(
    error: BaseException,
    conf: Path,
    config_name: str,
    overrides: list[str],
    of_run: tuple[str, ...],
) -> tuple[int, str]:
    """Exit code and message ("" where there is nothing to say) of whatever ended the program."""
    if isinstance(error, SystemExit):
        return _exit(error)
    if isinstance(error, Interrupted):
        one = config_name == "train" and not {"-m", "--multirun"} & {
            *overrides
        }  # of many the table has told
        advice = "; resume=auto with the same hydra.run.dir goes on" if one else ""
        return error.exit_code, f"stopped by {error}{advice}"
    if isinstance(error, ProjectError):
        return error.exit_code, _of_worker(error) if str(error).startswith(
            "Caught "
        ) else _one_line(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return ConfigError.exit_code, _unknown_option(error)
    if isinstance(error, MissingMandatoryValue) and error.full_key == "sweep.trial":
        return ConfigError.exit_code, "sweep=...: is a study of many runs; add --multirun"
    if isinstance(error, MissingMandatoryValue):
        return ConfigError.exit_code, f"{error.full_key}: must be given, as in {error.full_key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError.exit_code, _bad_override(error, conf, config_name, overrides, of_run)
    return _outside(error)


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean X?`` for the known name closest to ``name``, or an empty string."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.78)
    return f"; did you mean {found[0]}?" if found else ""


def _exit(error: SystemExit) -> tuple[int, str]:
    """Hydra's own exits (``--help``) pass through."""
    return (
        (error.code, "")
        if isinstance(error.code, int)
        else (0 if error.code is None else ConfigError.exit_code, str(error.code or ""))
    )


def _outside(error: BaseException) -> tuple[int, str]:
    """Errors of the libraries below us, by kind."""
    text = _one_line(error)
    if (
        isinstance(error, MemoryError)
        or "out of memory" in text.lower()
        or "can't allocate memory" in text.lower()
    ):
        return (
            MemoryExhaustedError.exit_code,
            f"out of memory: {text}; lower dataset.global_batch_size or raise trainer.accumulate_grad_batches",
        )
    if not isinstance(error, OSError) and re.search(
        r"gloo|nccl|(connection|pair) (closed|reset|closure)|broken pipe|socket|waiting for clients",
        text,
        re.IGNORECASE,
    ):
        reason = "another rank of this job is gone or does not answer; its own message tells why"
        return (
            WorkerLostError.exit_code,
            f"{reason}, resume=auto goes on from the last checkpoint ({text})",
        )
    if "DataLoader worker" in text or "DataLoader timed out" in text:
        return WorkerLostError.exit_code, f"{text}; try dataset.num_workers=0"
    if type(error).__name__ == "MisconfigurationException":
        return ConfigError.exit_code, text
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        advice = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StorageError.exit_code, f"{error.strerror or text}:{where}{advice}"
    return DEFECT, f"unexpected {type(error).__name__}: {text}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    return f"{group}={option}: no such option{nearest(option, options)}; there are {', '.join(options)}"


def _bad_override(
    error: Exception, conf: Path, config_name: str, overrides: list[str], of_run: tuple[str, ...]
) -> str:
    """Name the override that did not fit, with the nearest setting that exists."""
    text = _one_line(error)
    if text.startswith("Error merging override "):
        return f"{text.removeprefix('Error merging override ')}: {first_line(error.__cause__ or error)}"
    match = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", f"{error}")
    if not match:
        return re.sub(r"^Error parsing override ", "", text)
    key = (match[1] or match[2]).split("@")[0]
    guilty = [word for word in overrides if word.lstrip("+~").partition("=")[0] == key]
    if not guilty:
        return text
    known = _known(conf, config_name, [word for word in overrides if word not in guilty])
    group = key.partition(".")[0]
    if (
        not of_run
        and (conf / group).is_dir()
        and not any(name.startswith(f"{group}.") for name in known)
    ):
        return f"{guilty[0]}: nothing in this configuration uses the group {group!r} (another model may)"
    parent = key.rpartition(".")[0]
    beside = [name for name in known if parent and name.rpartition(".")[0] == parent]
    listed = ", ".join(name.rpartition(".")[2] for name in beside)
    advice = (nearest(key, beside) or f"; there are {listed}") if beside else nearest(key, known)
    also = f"; of the run itself {', '.join(of_run)} can be set" if of_run else ""
    line = f"{guilty[0]}: there is no setting {key!r}{advice}{also} (see --help)"
    return line.replace("hydra.launcher.", "launcher.")  # as it was typed


def _known(conf: Path, config_name: str, overrides: list[str]) -> list[str]:
    """Names of all settings and groups of the configuration without the override at fault."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            words = [word for word in overrides if "=" in word and not word.startswith("hydra")]
            cfg = compose(config_name, words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ConfigError):
        return []
    return _keys(cfg, "") + [folder.name for folder in conf.iterdir() if folder.is_dir()]


def _keys(node: DictConfig, prefix: str) -> list[str]:
    names = []
    for key in (k for k in node if not str(k).startswith("_")):
        names.append(f"{prefix}{key}")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            names += _keys(child, f"{prefix}{key}.")
    return names


def _of_worker(error: ProjectError) -> str:
    """The message of an error that a data worker sent as the text of its traceback."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return "; ".join(lines[:2]) or type(error).__name__
