"""A comparison as text: the table on the terminal, ``comparison.md`` and ``comparison.csv``."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.comparison.comparison import Comparison, Setting
from src.comparison.notes import how_measured, notes, runs_table
from src.comparison.runs import Number
from src.files import write_text

FEW = 4  # settings that read well side by side
NARROW = 20  # characters of a line in a header
WIDTH = 160  # characters; of a page, and of a terminal that has none
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Cell(NamedTuple):
    """Text of one number or choice, and whether it is the best of its kind."""

    text: str
    best: bool = False

    @property
    def plain(self) -> str:
        """Without colours the best is still marked."""
        return f"* {self.text}" if self.best else self.text


@dataclass(frozen=True)
class Grid:
    """header: of the columns. rows: their cells, the first names the row. ends: rows after which a section ends."""

    header: list[str]
    rows: list[list[Cell]]
    ends: set[int] = field(default_factory=set)

    def blocks(self, width: int) -> list[list[int]]:
        """Columns that fit side by side, the first one repeated in each block; one too wide stands alone."""
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
        """With its header in short lines, and the names of the rows as well where it is too wide even so."""
        grid = replace(self, header=[_wrapped(name) for name in self.header])
        if len(grid.blocks(width)) == 1:
            return grid
        return replace(
            grid,
            rows=[
                [Cell(_wrapped(name.text, max(NARROW, width // 4))), *cells]
                for name, *cells in self.rows
            ],
        )

    def _width(self, column: int) -> int:
        texts = [self.header[column], *(row[column].plain for row in self.rows)]
        return max(len(line) for text in texts for line in text.split("\n"))


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison in as many tables as the width of the console asks for."""
    grid, reasons = lay_out(comparison)
    grid = grid.fitted(console.width)
    for block in grid.blocks(console.width):
        table = Table()
        for column in block:
            table.add_column(
                Text(grid.header[column]), justify="right" if column else "left", overflow="fold"
            )
        for i, row in enumerate(grid.rows):
            cells = (row[column] for column in block)
            styled = (Text(cell.plain, style="bold green" if cell.best else "") for cell in cells)
            table.add_row(*styled, end_section=i in grid.ends)
        console.print(table)
    for note in [*reasons, *notes(comparison, best="*")]:
        console.print(note, markup=False, soft_wrap=True)


def write(comparison: Comparison, directory: Path) -> list[Path]:
    """``comparison.md`` and ``comparison.csv`` in ``directory``; raises StorageError when the disk refuses."""
    files = {
        directory / "comparison.md": markdown(comparison),
        directory / "comparison.csv": comma_separated(comparison),
    }
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def lay_out(comparison: Comparison) -> tuple[Grid, list[str]]:
    """The table, and the reasons of the numbers that are not there.

    Few settings stand side by side; many are listed below each other where they outnumber the metrics.
    """
    reasons: dict[str, str] = {}
    labels = [setting.label for setting in comparison.settings]
    choices = [
        (name, [Cell(value) for value in values]) for name, values in comparison.choices.items()
    ]
    seeds = ("seed", [Cell(setting.seeds) for setting in comparison.settings])
    numbers = [
        [(name, _cells(comparison, name, reasons)) for name in kind]
        for kind in (comparison.metrics, comparison.costs)
    ]
    if FEW < len(labels) >= len(comparison.metrics):
        lines = [seeds, *chain(*numbers), *choices]  # most choices are told by the labels
        columns = zip(
            [Cell(label) for label in labels], *(cells for _, cells in lines), strict=True
        )
        grid = Grid(["", *(name for name, _ in lines)], [list(row) for row in columns])
    else:
        sections = [[*choices, seeds], *numbers]
        ends = {end - 1 for end in accumulate(map(len, sections))}
        grid = Grid(["", *labels], [[Cell(name), *cells] for name, cells in chain(*sections)], ends)
    return grid, [f"{mark} {reason}" for reason, mark in reasons.items()]


def _wrapped(text: str, width: int = NARROW) -> str:
    """Lines broken after blanks, ``_`` and ``/``."""
    lines = [""]
    for piece in re.findall(r"[^ _/]*[ _/]?", text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _cells(comparison: Comparison, name: str, reasons: dict[str, str]) -> list[Cell]:
    best = comparison.best(name)
    return [
        Cell(_shown(setting, name, reasons), i in best)
        for i, setting in enumerate(comparison.settings)
    ]


def _shown(setting: Setting, name: str, reasons: dict[str, str]) -> str:
    number = setting.numbers.get(name)
    if number is None:
        return ""
    if number.value is None:
        mark = reasons.setdefault(
            number.reason or "no reason was given", str(len(reasons) + 1).translate(SUPERSCRIPTS)
        )
        return f"–{mark}"
    fewer = f" (n={number.count})" if number.count < len(setting.runs) else ""
    return formatted(number) + fewer


def formatted(number: Number) -> str:
    """``0.985 ± 0.12``: three or four significant digits, more where the error is smaller; counts in full."""
    if not number.error:
        whole = float(number.value).is_integer() and abs(number.value) < 1e9
        return f"{number.value:,.0f}" if whole else _rounded(number.value, 4)
    size = _exponent(number.value) - _exponent(number.error)
    return f"{_rounded(number.value, max(3, min(size + 2, 4), min(size + 1, 9)))} ± {_rounded(number.error, 2)}"


def _rounded(value: float, digits: int) -> str:
    exponent = _exponent(value)
    return (
        f"{value:.{max(0, digits - 1 - exponent)}f}"
        if -6 <= exponent < 7
        else f"{value:.{digits - 1}e}"
    )


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def markdown(comparison: Comparison) -> str:
    """One GitHub table, the notes, how the numbers were measured, and the runs behind them."""
    grid, reasons = lay_out(comparison)
    rows = [[Cell(name) for name in grid.header], *grid.rows]
    lines = [f"| {' | '.join(_in_markdown(cell) for cell in row)} |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(grid.header) - 1))
    paragraphs = [f"- {note}" for note in [*reasons, *notes(comparison, best="**bold**")]]
    title = f"# Comparison of {len(comparison.runs)} run{'s' * (len(comparison.runs) > 1)}"
    text = [
        title,
        "",
        *lines,
        "",
        *paragraphs,
        "",
        *how_measured(comparison),
        *runs_table(comparison),
    ]
    return "\n".join(text) + "\n"


def _in_markdown(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.best else text


def comma_separated(comparison: Comparison) -> str:
    """A row per setting: label, runs, seeds, choices, then value and error of every number that any run has."""
    names = [*comparison.measured, *comparison.costs]
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    own = [column for name in names for column in (name, f"{name}_error")]
    writer.writerow(["setting", "runs", "n", "seeds", *comparison.choices, *own])
    for i, setting in enumerate(comparison.settings):
        runs = setting.runs
        row = [
            setting.label,
            ";".join(str(run.path) for run in runs),
            len(runs),
            ";".join(str(r.seed) for r in runs),
        ]
        row += [values[i] for values in comparison.choices.values()]
        for name in names:
            number = setting.numbers.get(name, Number(None))
            row += [number.value, number.error]
        writer.writerow(row)
    return target.getvalue()
