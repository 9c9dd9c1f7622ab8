"""A comparison as rows and cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, chain

from src.comparison.comparison import Comparison
from src.comparison.pooling import Setting
from src.comparison.runs import Number
from src.report.table import Cell, Grid

FEW = 4  # settings that read well side by side
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Line = tuple[str, list[Cell]]  # a name, and a cell for each setting


class Footnotes:
    """Reasons, each with a mark of its own."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        """``¹`` for the first reason, and again whenever it is given."""
        following = str(len(self._marks) + 1).translate(SUPERSCRIPTS)
        return self._marks.setdefault(reason, following)

    @property
    def lines(self) -> list[str]:
        """The reasons behind their marks."""
        return [f"{mark} {reason}" for reason, mark in self._marks.items()]


def lay_out(comparison: Comparison) -> tuple[Grid, list[str]]:
    """The table, and the reasons of the numbers that are not there.

    Few settings stand side by side; many are listed below each other, if they outnumber the
    metrics.
    """
    footnotes = Footnotes()
    labels = [setting.label for setting in comparison.settings]
    choices = [(name, list(map(Cell, values))) for name, values in comparison.choices.items()]
    seeds = ("seed", [Cell(setting.seeds) for setting in comparison.settings])
    metrics = [(name, _cells(comparison, name, footnotes)) for name in comparison.metrics]
    costs = [(name, _cells(comparison, name, footnotes)) for name in comparison.costs]
    if FEW < len(labels) >= len(comparison.metrics):
        # the choices come last: most of them are in the labels
        grid = _below_each_other(labels, [seeds, *metrics, *costs, *choices])
    else:
        grid = _side_by_side(labels, [[*choices, seeds], metrics, costs])
    return grid, footnotes.lines


def formatted(number: Number) -> str:
    """``0.985 ± 0.12``; counts in full.

    Three or four significant digits, more where the error is smaller.
    """
    if not number.error:
        whole = float(number.value).is_integer() and abs(number.value) < 1e9
        return f"{number.value:,.0f}" if whole else _rounded(number.value, 4)
    size = _exponent(number.value) - _exponent(number.error)
    digits = max(3, min(size + 2, 4), min(size + 1, 9))
    return f"{_rounded(number.value, digits)} ± {_rounded(number.error, 2)}"


def _below_each_other(labels: list[str], lines: Sequence[Line]) -> Grid:
    """A row for each setting."""
    columns = [list(map(Cell, labels)), *(cells for _, cells in lines)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Grid(["", *(name for name, _ in lines)], rows)


def _side_by_side(labels: list[str], sections: Sequence[Sequence[Line]]) -> Grid:
    """A column for each setting."""
    rows = [[Cell(name), *cells] for name, cells in chain(*sections)]
    ends = {end - 1 for end in accumulate(map(len, sections))}
    return Grid(["", *labels], rows, ends)


def _cells(comparison: Comparison, name: str, footnotes: Footnotes) -> list[Cell]:
    best = comparison.best(name)
    texts = [_text(setting, name, footnotes) for setting in comparison.settings]
    return [Cell(text, i in best) for i, text in enumerate(texts)]


def _text(setting: Setting, name: str, footnotes: Footnotes) -> str:
    number = setting.numbers.get(name)
    if number is None:
        return ""
    if number.value is None:
        return f"–{footnotes.mark(number.reason or 'no reason was given')}"
    fewer = f" (n={number.count})" if number.count < len(setting.runs) else ""
    return formatted(number) + fewer


def _rounded(value: float, digits: int) -> str:
    exponent = _exponent(value)
    if -6 <= exponent < 7:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0
