"""Error classes, one per exit code: the reason why a process ended (see ``docs/errors.md``)."""

from __future__ import annotations

import signal


class ProjectError(Exception):
    """An error with a one-line message for the user: the setting, its value, what is allowed."""

    exit_code = 1


class ConfigError(ProjectError, ValueError):
    """A setting's value cannot work. Constructors write ``name=value: what is allowed``."""

    exit_code = 2

    def under(self, path: str) -> ConfigError:
        """The same error with the path in front: ``num_steps=0`` gives ``sampler.num_steps=0``."""
        text = str(self)
        if text.startswith((f"{path}.", f"{path}=")):
            return self
        return ConfigError(f"{path}.{text}")


class DataError(ProjectError):
    """A data set is missing, empty, damaged or does not fit the task."""

    exit_code = 3


class CheckpointError(ProjectError):
    """A checkpoint is missing, damaged, untrusted or belongs to another model."""

    exit_code = 4


class StorageError(ProjectError):
    """Reading or writing failed: disk full, no permission, directory in use."""

    exit_code = 5


class NonFiniteError(ProjectError):
    """The loss became NaN or infinite."""

    exit_code = 6


class MemoryExhaustedError(ProjectError):
    """The device or the machine ran out of memory."""

    exit_code = 7


class WorkerLostError(ProjectError):
    """A data worker or a rank died."""

    exit_code = 8


class Interrupted(BaseException):
    """The program received a signal to stop. exit_code: 130 after Ctrl-C, else 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 130 if signum == signal.SIGINT else 143


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``ConfigError('name=value: allowed')`` unless ``holds``.

    The command line adds the path of the setting.
    """
    if not holds:
        raise ConfigError(f"{name}={value}: {allowed}")


def require_count(name: str, value: int, most: int | None = None, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is an integer, ``least`` to ``most`` (None: no limit)."""
    whole = isinstance(value, int) and value >= least
    if most is None:
        require(whole, name, value, f"must be an integer >= {least}")
    else:
        allowed = f"must be an integer >= {least} and <= {most}"
        require(whole and value <= most, name, value, allowed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or the machine: torch raises a RuntimeError then."""
    text = str(error).lower()
    known = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in text for words in known)


def first_line(error: BaseException) -> str:
    """First line of the error's message, or its class where it has none (libraries raise both)."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
