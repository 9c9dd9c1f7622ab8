"""A comparison on the terminal, as ``comparison.md`` and as ``comparison.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.comparison.comparison import Comparison
from src.comparison.notes import notes, ranking
from src.comparison.pooling import Setting
from src.comparison.provenance import how_measured, runs_table
from src.comparison.runs import Number
from src.comparison.table import lay_out
from src.files import write_text
from src.foreign import printable
from src.report import escape
from src.report.escape import bold, line

if TYPE_CHECKING:
    from src.report.table import Console


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison in as many tables as the width of the console asks for."""
    grid, reasons = lay_out(comparison)
    grid.show(console)
    for note in [*reasons, *notes(comparison), *ranking(comparison, best="*")]:
        console.print(printable(note), markup=False, soft_wrap=True)


def write(comparison: Comparison, directory: Path) -> list[Path]:
    """``comparison.md`` and ``comparison.csv``; raises StorageError when the disk refuses."""
    files = {
        directory / "comparison.md": markdown(comparison),
        directory / "comparison.csv": comma_separated(comparison),
    }
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def markdown(comparison: Comparison) -> str:
    """One GitHub table, the notes, how the numbers were measured, and the runs behind them."""
    grid, reasons = lay_out(comparison)
    paragraphs = [*map(line, [*reasons, *notes(comparison)])]
    paragraphs += ranking(comparison, best=bold("bold"))
    num = len(comparison.runs)
    runs = "1 run" if num == 1 else f"{num} runs"
    lines = [
        f"# Comparison of {runs}",
        "",
        *grid.markdown(),
        "",
        *(f"- {paragraph}" for paragraph in paragraphs),
        "",
        *how_measured(comparison),
        *runs_table(comparison),
    ]
    return "\n".join(lines) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """A row per setting: label, runs, seeds, choices, then value and error of each number."""
    names = [*comparison.measured, *comparison.costs]
    columns = [column for name in names for column in (name, f"{name}_error")]
    rows: list[list[object]] = [["setting", "runs", "n", "seeds", *comparison.choices, *columns]]
    for i, setting in enumerate(comparison.settings):
        choices = [values[i] for values in comparison.choices.values()]
        rows.append([*_identity(setting), *choices, *_numbers(setting, names)])
    return escape.comma_separated(rows)


def _identity(setting: Setting) -> list[object]:
    paths = ";".join(str(run.path) for run in setting.runs)
    seeds = ";".join(str(run.seed) for run in setting.runs)
    return [setting.label, paths, len(setting.runs), seeds]


def _numbers(setting: Setting, names: Sequence[str]) -> list[float | None]:
    """Value and error of each name, in turn."""
    cells = []
    for name in names:
        number = setting.numbers.get(name, Number(None))
        cells += [number.value, number.error]
    return cells
