"""Error classes, one per exit code: what went wrong decides how the process ends (see ``docs/errors.md``)."""

from __future__ import annotations

import signal


class ProjectError(Exception):
    """An error with a message for the user: one line that names the setting, its value and what is allowed."""

    exit_code = 1


class ConfigError(ProjectError, ValueError):
    """A setting has a value that cannot work. Constructors write ``name=value: what is allowed``."""

    exit_code = 2

    def under(self, path: str) -> ConfigError:
        """The same error with the path in front: ``num_steps=0: ...`` becomes ``sampler.num_steps=0: ...``."""
        text = str(self)
        return self if text.startswith((f"{path}.", f"{path}=")) else ConfigError(f"{path}.{text}")


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
    """The program was asked to stop. exit_code: 130 after Ctrl-C, else 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 130 if signum == signal.SIGINT else 143


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``ConfigError('name=value: allowed')`` unless ``holds``; the command line adds the path of the setting."""
    if not holds:
        raise ConfigError(f"{name}={value}: {allowed}")


def first_line(error: BaseException) -> str:
    """First line of the error's message, or its class where it has none (libraries raise both)."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
