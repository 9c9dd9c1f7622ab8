"""What a process prints: plain messages without secrets, on outputs that survive a closed pipe."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from src.config.rank import is_first
from src.config.secrecy import masked
from src.foreign import printable


class Patient:
    """An output without known secrets that survives a closed pipe: a training goes on all the same.

    Arguments:
        stream: the standard output (``| head`` closes it) or the standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the stream has)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or discard once the reader is gone."""
        with self._surviving():
            self._stream.write(masked(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or discard once the reader is gone."""
        with self._surviving():
            self._stream.flush()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            silence([self._stream.fileno()])


class Plain(logging.Formatter):
    """Messages without known secrets, in which nothing acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, and its traceback where it has one."""
        return printable(masked(super().format(record)), keep="\n")


class _Stdout(logging.StreamHandler):
    """Writes to the current standard output: a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Follow ``sys.stdout``."""
        self.stream = sys.stdout
        super().emit(record)


def quiet_logging() -> None:
    """Plain messages on standard output; of libraries and of further ranks only warnings."""
    logging.raiseExceptions = False  # a full disk or a closed pipe is no reason to fail
    handlers = [_Stdout()]
    handlers[0].setFormatter(Plain())
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("src").setLevel(logging.INFO if is_first() else logging.WARNING)


def silence(outputs: list[int]) -> None:
    """Discard what is written to a terminal or a reader that is gone; train.log has it all."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in outputs:
        os.dup2(nowhere, output)
    os.close(nowhere)
