"""Foreign text for each kind of output: nothing in it acts, and all of it can be read.

For the terminal it is ``printable``; here are Markdown, tables of values (CSV) and figures. Names,
settings and reasons of a run may come from anybody.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from src.foreign import printable

# what means something within a line of GitHub's Markdown; "_" does so only at the ends of words
INLINE = re.compile(r"[\\`*\[<&~$]|(?<![^\W_])_|_(?![^\W_])")
LEADING = re.compile(r"^( *\d*)(?=[#+=>.)-])")  # what begins a heading, a quotation or a list
IN_CODE = re.compile(r"[\\`|]")  # what cannot be written there
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# what a spreadsheet computes, also where it takes semicolons for the ends of cells
FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def inline(text: object) -> Markdown:
    """Text within a line of Markdown, as it is read; Markdown is left as it is."""
    if isinstance(text, Markdown):
        return text
    return Markdown(INLINE.sub(r"\\\g<0>", printable(text)))


def line(text: object) -> Markdown:
    """Text at the beginning of a line or list item of Markdown."""
    return Markdown(LEADING.sub(r"\1\\", inline(text)))


def cell(text: object) -> Markdown:
    """Text in a cell of a GitHub table."""
    return Markdown(inline(text).replace("|", "\\|"))


def bold(text: object) -> Markdown:
    """Bold text."""
    return Markdown(f"**{inline(text)}**")


def code(text: object) -> Markdown:
    """Text in the letters of a typewriter, where these can write it."""
    shown = printable(text)
    return inline(text) if not shown or IN_CODE.search(shown) else Markdown(f"`{shown}`")


def comma_separated(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV: numbers as they are, no text that a spreadsheet would compute."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    for row in rows:
        writer.writerow([_inert(value) for value in row])
    return target.getvalue()


def label(text: object) -> str:
    """Text in a figure, where a dollar would begin a formula."""
    return printable(text).replace("$", r"\$")


def _inert(value: object) -> object:
    """The value of a cell; before what begins a formula stands an apostrophe."""
    if value is None or isinstance(value, int | float):
        return value
    text = printable(value)
    return text if NUMBER.fullmatch(text) else FORMULA.sub(r"\1\2'", text)
