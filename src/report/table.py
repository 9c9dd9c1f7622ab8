"""Tables of plain texts: on the terminal, divided where they are too wide, and as Markdown."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.foreign import printable
from src.report import escape
from src.report.escape import Markdown, bold, inline

WIDTH = 160  # characters, where the output is no terminal
NARROW = 20  # characters of a line in a header
BEST = "bold green"


def terminal(*, soft_wrap: bool = False) -> Console:
    """Standard output, as wide as the terminal. soft_wrap: leave the breaking of lines to it."""
    width = None if sys.stdout.isatty() else WIDTH
    return Console(width=width, highlight=False, emoji=False, soft_wrap=soft_wrap)


class Cell(NamedTuple):
    """The text of a cell, and whether it is the best of its kind."""

    text: str
    best: bool = False

    @property
    def plain(self) -> str:
        """The text as it is shown; the best is marked even without colours."""
        return f"* {self.text}" if self.best else self.text

    @property
    def markdown(self) -> Markdown:
        """The text with the best in bold."""
        return bold(self.text) if self.best else inline(self.text)


@dataclass(frozen=True)
class Grid:
    """A table whose first column names the rows; the other columns are aligned to the right.

    Arguments:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
        ends: indices of the rows after which a section ends.
    """

    header: list[str]
    rows: list[list[Cell]]
    ends: set[int] = field(default_factory=set)

    def show(self, console: Console) -> None:
        """Print in as many tables as the width of the console asks for."""
        grid = self._printable().fitted(console.width)
        for columns in grid.blocks(console.width):
            console.print(grid._table(columns))

    def markdown(self) -> list[str]:
        """Lines of one GitHub table."""
        rows = []
        for row in self.rows:
            rows.append([cell.markdown for cell in row])
        return markdown_table(self.header, rows, right=range(1, len(self.header)))

    def blocks(self, width: int) -> list[list[int]]:
        """Columns that fit side by side; the first one is repeated in each block.

        A column that is too wide stands alone.
        """
        head, *columns = (self._width(column) + 3 for column in range(len(self.header)))
        found: list[list[int]] = []
        room = 0
        for column, needed in enumerate(columns, start=1):
            if needed > room:
                found.append([0])
                room = width - 1 - head
            found[-1].append(column)
            room -= needed
        return found

    def fitted(self, width: int) -> Grid:
        """With short lines in its header, and in the names of the rows if it is still too wide."""
        grid = replace(self, header=[wrapped(name, NARROW) for name in self.header])
        if len(grid.blocks(width)) == 1:
            return grid
        longest = max(NARROW, width // 4)
        rows = [[Cell(wrapped(name.text, longest)), *cells] for name, *cells in self.rows]
        return replace(grid, rows=rows)

    def _printable(self) -> Grid:
        rows = []
        for row in self.rows:
            rows.append([Cell(printable(cell.text), cell.best) for cell in row])
        return replace(self, header=[printable(name) for name in self.header], rows=rows)

    def _width(self, column: int) -> int:
        texts = [self.header[column], *(row[column].plain for row in self.rows)]
        lines = "\n".join(texts).split("\n")
        return max(map(len, lines))

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table()
        for column in columns:
            name = Text(self.header[column])
            table.add_column(name, justify="right" if column else "left", overflow="fold")
        for i, row in enumerate(self.rows):
            shown = [row[column] for column in columns]
            texts = [Text(cell.plain, style=BEST if cell.best else "") for cell in shown]
            table.add_row(*texts, end_section=i in self.ends)
        return table


def wrapped(text: str, width: int) -> str:
    """Broken after blanks, ``_`` and ``/`` into lines of at most ``width`` where that suffices."""
    lines = [""]
    for piece in re.findall(r"[^ _/]*[ _/]?", text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[int] = ()
) -> list[str]:
    """Lines of a GitHub table, its cells as text or Markdown.

    right: indices of the columns that are aligned to the right.
    """
    alignments = ["---:" if column in right else "---" for column in range(len(header))]
    return [_row(header), f"|{'|'.join(alignments)}|", *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(escape.cell, cells))} |"
