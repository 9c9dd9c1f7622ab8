"""The metric card of a model: every number with its uncertainty and context, for eyes, programs and papers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from src.files import write_json, write_text
from src.metric.base import Measurement
from src.runtime.readings import reading

SECTIONS = {  # heading -> first parts of the names below it
    "Samples": ("fid", "kid", "precision", "recall", "density", "coverage", "memorised", "inception", "confident"),
    "Likelihood": ("bits", "nats", "l_", "rate", "distortion"),
    "Latents": ("active", "kl", "num", "mig", "dci", "sap", "factor", "beta"),
}
OTHER = "Losses and the rest"


@dataclass
class Card:
    """Numbers by name (``test/fid_classifier_360``), what they all depend on, and what was left out and why."""

    title: str
    context: dict[str, Any]
    numbers: dict[str, Measurement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, stage: str, measured: Mapping[str, Measurement], **context: Any) -> None:  # noqa: ANN401
        """Take over numbers, named ``<stage>/<name>``, with context that they share."""
        self.numbers |= {f"{stage}/{name}": number.within(**context) for name, number in measured.items()}

    @property
    def values(self) -> dict[str, float | None]:
        """Flat name -> value."""
        return {name: number.value for name, number in self.numbers.items()}

    def write(self, directory: Path) -> list[Path]:
        """``evaluation.json`` and ``evaluation.md`` in ``directory``."""
        files = [directory / "evaluation.json", directory / "evaluation.md"]
        details = {name: _details(number) for name, number in self.numbers.items()}
        write_json(files[0], self.values | {"details": details, "context": self.context, "notes": self.notes})
        write_text(files[1], self._markdown())
        return files

    def show(self) -> None:
        """Print the card as a table."""
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        table = Table(title=self.title, title_justify="left")
        table.add_column("metric", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("reading")
        for heading, names in self._sections():
            table.add_section()
            table.add_row(f"[bold]{heading}[/bold]")
            for name in names:
                table.add_row(f"  {name}", _with_error(self.numbers[name]), self._reading(name))
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}")

    def _sections(self) -> list[tuple[str, list[str]]]:
        sections: dict[str, list[str]] = {heading: [] for heading in (*SECTIONS, OTHER)}
        for name in self.numbers:
            stage, _, rest = name.partition("/")
            fitting = [heading for heading, starts in SECTIONS.items() if stage == "test" and rest.startswith(starts)]
            sections[fitting[0] if fitting else OTHER].append(name)
        return [(heading, names) for heading, names in sections.items() if names]

    def _reading(self, name: str) -> str:
        return self.numbers[name].reason or reading(name, self.values)

    def _markdown(self) -> str:
        lines = [f"# {self.title}", ""]
        for heading, names in self._sections():
            lines += [f"## {heading}", "", "| metric | value | reading |", "|---|---:|---|"]
            lines += [f"| `{n}` | {_with_error(self.numbers[n])} | {_cell(self._reading(n))} |" for n in names]
            lines.append("")
        kinds = sorted({f"± is {n.error_kind}" for n in self.numbers.values() if n.error is not None})
        lines += ["## Context", "", *(f"- {name}: {_cell(str(value))}" for name, value in self.context.items())]
        lines += [f"- {text}" for text in [*kinds, *self.notes]]
        return "\n".join(lines) + "\n"


def _details(number: Measurement) -> dict[str, Any]:
    return {name: getattr(number, name) for name in ("error", "error_kind", "reason", "context")}


def _with_error(number: Measurement) -> str:
    if number.value is None:
        return "–"
    return f"{number.value:.4g}" + ("" if number.error is None else f" ± {number.error:.2g}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
