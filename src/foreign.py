"""What others wrote: files read as checked plain values, and texts made fit to be shown.

Readers raise ValueError with the reason, as in "holds 7", and OSError where there is nothing to
read; ``naming`` makes one line of either. Files of run and sweep directories are read with these.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from src.errors import DataError, StorageError, first_line
from src.files import read_regular

MAX_BYTES = 4 * 2**20
MAX_VALUES = 100_000  # of a file
MAX_DEPTH = 32  # of objects and lists in each other
MAX_DIGITS = 20  # of an integer; 64 bits have as many
NUMBER = (int, float, type(None))  # a measured number, or none
TEXT = (str, type(None))

Kinds = Mapping[str, tuple[type, ...]]  # name -> what its value may be; bool is no int here

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def shown(value: object) -> str:
    """A foreign value for a message: short, on one line, without control characters."""
    return _shown.repr(value)


def printable(text: object, keep: str = "") -> str:
    r"""The text with its escapes, line breaks and marks of direction as words: ``\x1b``.

    On a terminal these would act. keep: characters that stay all the same.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_visible(letter, keep) for letter in text)


def _visible(letter: str, keep: str) -> str:
    if letter.isprintable() or letter in keep:
        return letter
    return letter.encode("unicode_escape").decode()


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give what readers raise in the block the name of the file: DataError or StorageError.

    That there is no such file is for the caller to say: FileNotFoundError passes.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: damaged ({first_line(error)})") from error


def read_text(path: str | os.PathLike[str], most: int = MAX_BYTES) -> str:
    """Text (UTF-8) of a regular file of at most ``most`` bytes."""
    return read_regular(path, most).decode()


def read_json(path: str | os.PathLike[str], most: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in such a file, in our limits."""
    return json_object(read_text(path, most))


def json_object(text: str) -> dict[str, Any]:
    """The object that JSON describes: names and plain values, bounded in number and depth."""
    try:
        content = json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(f"holds more than {MAX_DEPTH} levels of values") from error
    if not isinstance(content, dict):
        raise ValueError("a mapping of names was expected")
    _check_size(content)
    return content


def checked(
    content: Mapping[str, Any], kinds: Kinds, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values of the names in ``kinds``, each of its kind; other names are left out.

    Arguments:
        content: names and values.
        kinds: what each value may be.
        defaults: of names that may be absent.
    """
    found = {}
    for name, kind in kinds.items():
        value = content.get(name, (defaults or {}).get(name))
        if not is_of(value, kind):
            words = " or ".join(sorted(one.__name__ for one in kind)).replace("NoneType", "null")
            raise ValueError(f"{name} is {shown(value)}, {words} was expected")
        found[name] = value
    return found


def counts(content: Mapping[str, Any], *names: str) -> dict[str, int]:
    """The values of these names, each an integer from 0; raises ValueError."""
    found = checked(content, dict.fromkeys(names, (int,)))
    for name, value in found.items():
        if not 0 <= value < 2**53:
            raise ValueError(f"{name} is {shown(value)}, a count was expected")
    return found


def is_of(value: object, kind: tuple[type, ...]) -> bool:
    """Whether a plain value is of one of these types; true and false are no numbers."""
    return isinstance(value, kind) and (bool in kind or not isinstance(value, bool))


def check_texts(value: object, name: str) -> None:
    """Raise ValueError unless this is a list of texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is {shown(value)}, a list of texts was expected")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _check_size(content: object) -> None:
    """Raise ValueError beyond MAX_VALUES values or MAX_DEPTH levels."""
    level = [content]
    seen = 0
    for _ in range(MAX_DEPTH):
        parts: list[object] = []
        for value in level:
            parts += value.values() if isinstance(value, dict) else value
        seen += len(parts)
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level or seen > MAX_VALUES:
            break
    if seen > MAX_VALUES:
        raise ValueError(f"holds more than {MAX_VALUES} values")
    if level:
        raise ValueError(f"holds more than {MAX_DEPTH} levels of values")
