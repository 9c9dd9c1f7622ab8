"""From an exception to an exit code and one line: the setting, its value and what is allowed."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.config.origin import sources
from src.config.words import OF_RUN, names, nearest, no_such_setting, unused_group
from src.errors import (
    ConfigError,
    Interrupted,
    MemoryExhaustedError,
    ProjectError,
    StorageError,
    WorkerLostError,
    first_line,
    is_out_of_memory,
)

DEFECT = 1  # all other codes belong to the classes of src/errors.py
LOST_PEER = re.compile(
    r"gloo|nccl|(connection|pair) (closed|reset|closure)|broken pipe|socket|waiting for clients",
    re.IGNORECASE,
)


def explain(
    error: BaseException,
    conf: Path,
    config_name: str,
    overrides: list[str],
) -> tuple[int, str]:
    """Exit code and message ("" where there is nothing to say) of whatever ended the program."""
    if isinstance(error, SystemExit):
        return _exit(error)
    if isinstance(error, Interrupted):
        return error.exit_code, _interrupted(error, config_name, overrides)
    if isinstance(error, ProjectError):
        from_worker = str(error).startswith("Caught ")
        return error.exit_code, _of_worker(error) if from_worker else _one_line(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return ConfigError.exit_code, _unknown_option(error)
    if isinstance(error, MissingMandatoryValue) and error.full_key == "sweep.trial":
        return ConfigError.exit_code, "sweep=...: is a study of many runs; add --multirun"
    if isinstance(error, MissingMandatoryValue):
        return ConfigError.exit_code, f"{error.full_key}: must be given, as in {error.full_key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError.exit_code, _bad_override(error, conf, overrides)
    return _outside(error)


def _exit(error: SystemExit) -> tuple[int, str]:
    """Hydra's own exits (``--help``) pass through."""
    if isinstance(error.code, int):
        return error.code, ""
    if error.code is None:
        return 0, ""
    return ConfigError.exit_code, str(error.code)


def _interrupted(error: Interrupted, config_name: str, overrides: list[str]) -> str:
    """How to go on; the table of a multirun says it for each of its runs."""
    is_one_run = config_name.startswith("train") and "--multirun" not in overrides
    advice = "; resume=auto with the same hydra.run.dir goes on" if is_one_run else ""
    return f"stopped by {error}{advice}"


def _outside(error: BaseException) -> tuple[int, str]:
    """Errors of the libraries below us, by kind."""
    text = _one_line(error)
    if is_out_of_memory(error):
        advice = "lower dataset.global_batch_size or raise trainer.accumulate_grad_batches"
        return MemoryExhaustedError.exit_code, f"out of memory: {text}; {advice}"
    if not isinstance(error, OSError) and LOST_PEER.search(text):
        reason = "another rank of this job is gone or does not answer; its own message tells why"
        advice = "resume=auto goes on from the last checkpoint"
        return WorkerLostError.exit_code, f"{reason}, {advice} ({text})"
    if "Too many open files" in text and not isinstance(error, OSError):  # torch's, of its workers
        advice = "try a lower dataset.num_workers, or raise the limit (ulimit -n)"
        return (
            WorkerLostError.exit_code,
            f"data workers cannot be heard: too many open files; {advice}",
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
    options = sorted(option for option in error.options or [] if option != OF_RUN)
    if not options:
        advice = "in the defaults of a file another group begins with a slash, as in /model"
        return f"{first_line(error).rstrip('.')}; {advice}"
    there = f"there are {', '.join(options)}"
    return f"{group}={option}: no such option{nearest(option, options)}; {there}"


def _bad_override(error: Exception, conf: Path, overrides: list[str]) -> str:
    """Name the override that did not fit, with the nearest setting that exists."""
    text = _one_line(error if str(error) else error.__cause__ or error)
    merging = "Error merging override "
    if text.startswith(merging):
        return f"{text.removeprefix(merging)}: {first_line(error.__cause__ or error)}"
    key = _rejected_key(error)
    if key is None:
        return text.removeprefix("Error parsing override ")
    guilty = [word for word in overrides if word.lstrip("+~").partition("=")[0] == key]
    if not guilty:
        return f"{text.rstrip('.')}{nearest(key, [folder.name for folder in conf.iterdir()])}"
    known = _known(conf)
    group = key.partition(".")[0]
    is_used = not known or any(name.startswith(f"{group}.") for name in known)
    if (conf / group).is_dir() and not is_used:
        return f"{guilty[0]}: {unused_group(group)}"
    line = f"{guilty[0]}: {no_such_setting(key, known)} (see --help)"
    return line.replace("hydra.launcher.", "launcher.")  # as it was typed


def _rejected_key(error: Exception) -> str | None:
    """The setting that Hydra's message says it could not override; None where it names none."""
    known = r"Could not override '([^']+)'|Key '([^']+)' is not in struct"
    match = re.search(known, str(error))
    return None if match is None else (match[1] or match[2]).split("@")[0]


def _known(conf: Path) -> list[str]:
    """Names of all settings that the files of the configuration have, and of the groups."""
    settings = [name for source in sources() for name in names(source.content)]
    groups = [folder.name for folder in conf.iterdir() if folder.is_dir()]
    return list(dict.fromkeys([name for name in settings if "._" not in f".{name}"] + groups))


def _of_worker(error: ProjectError) -> str:
    """The message of an error that a data worker sent as the text of its traceback."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return "; ".join(lines[:2]) or type(error).__name__
