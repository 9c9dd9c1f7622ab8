"""The metric card of a model: every number with its uncertainty and context, for eyes, programs and papers."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from src.config.words import brief
from src.files import write_json, write_text
from src.metric.base import Measurement
from src.report.pictures import save_png
from src.report.readings import reading
from src.rundir.directory import keep_earlier

SECTIONS = {  # heading -> first parts of the names below it
    "Samples": (
        "fid",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "memorised",
        "inception",
        "confident",
    ),
    "Reconstruction": ("psnr", "ssim", "lpips"),
    "Likelihood": ("bits", "nats", "log_likelihood", "rate", "distortion"),
    "Latents": ("active", "kl", "num", "mig", "dci", "sap", "factor", "beta"),
}
OTHER = "Losses and the rest"
FILES = ("evaluation.json", "evaluation.md", "evaluation-bound.png")


@dataclass
class Card:
    """Numbers by name (``test/fid_classifier_360``), what they all depend on, and what was left out and why.

    pictures: ``bound`` -> RGB (H, W, 3) uint8.
    """

    title: str
    context: dict[str, Any]
    numbers: dict[str, Measurement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, stage: str, measured: Mapping[str, Measurement], **context: Any) -> None:  # noqa: ANN401
        """Take over numbers, named ``<stage>/<name>``, with context that they share; NaN is no number."""
        self.numbers |= {
            f"{stage}/{name}": _finite(number).within(**context)
            for name, number in measured.items()
        }

    @property
    def values(self) -> dict[str, float | None]:
        """Flat name -> value."""
        return {name: number.value for name, number in self.numbers.items()}

    def write(self, directory: Path) -> list[Path]:
        """``evaluation.json``, ``evaluation.md`` and pictures in ``directory``; those of an earlier evaluation stay.

        They are renamed ``evaluation-1.json`` and so on. Returns the paths of the new ones.
        """
        for name in FILES:
            keep_earlier(directory / name)
        files = [directory / name for name in FILES[:2]]
        details = {name: _details(number) for name, number in self.numbers.items()}
        write_json(
            files[0],
            self.values | {"details": details, "context": self.context, "notes": self.notes},
        )
        write_text(files[1], self._markdown())
        for name, picture in self.pictures.items():
            files.append(directory / f"evaluation-{name}.png")
            save_png(picture, files[-1])
        return files

    def show(self) -> None:
        """Print the card as a table."""
        console = Console(
            width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True
        )
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
        """Headings with the names below them; without what can have no number here."""
        sections: dict[str, list[str]] = {heading: [] for heading in (*SECTIONS, OTHER)}
        for name in (name for name, number in self.numbers.items() if number.applies):
            stage, _, rest = name.partition("/")
            fitting = [
                heading
                for heading, starts in SECTIONS.items()
                if stage == "test" and rest.startswith(starts)
            ]
            sections[fitting[0] if fitting else OTHER].append(name)
        return [(heading, names) for heading, names in sections.items() if names]

    def _reading(self, name: str) -> str:
        number = self.numbers[name]
        return number.reason or reading(name, self.values, number.context)

    def _markdown(self) -> str:
        lines = [f"# {self.title}", ""]
        for heading, names in self._sections():
            lines += [f"## {heading}", "", "| metric | value | reading |", "|---|---:|---|"]
            lines += [
                f"| `{n}` | {_with_error(self.numbers[n])} | {_cell(self._reading(n))} |"
                for n in names
            ]
            lines += ["", *self._facts(names), *self._kinds_of_error(names), ""]
        lines += [
            "## Context",
            "",
            *(f"- {name}: {brief(value)}" for name, value in self.context.items()),
        ]
        lines += [f"- {text}" for text in self.notes]
        return "\n".join(lines) + "\n"

    def _facts(self, names: Sequence[str]) -> Iterator[str]:
        """What each number depends on beyond the context of the card: a line for what all share, then their own."""
        contexts = [
            {
                key: value
                for key, value in self.numbers[name].context.items()
                if self.context.get(key) != value
            }
            for name in names
        ]
        shared = {
            key: value
            for key, value in contexts[0].items()
            if all(c.get(key) == value for c in contexts)
        }
        own: dict[str, list[str]] = defaultdict(list)
        for name, context in zip(names, contexts, strict=True):
            own[
                _listed({key: value for key, value in context.items() if key not in shared})
            ].append(name)
        yield from [f"- all: {_listed(shared)}"] if shared else []
        yield from (f"- {_quoted(owners)}: {facts}" for facts, owners in own.items() if facts)

    def _kinds_of_error(self, names: Sequence[str]) -> Iterator[str]:
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if self.numbers[name].error is not None:
                kinds[self.numbers[name].error_kind].append(name)
        yield from (f"- ± is {kind}: {_quoted(owners)}" for kind, owners in kinds.items())


def _finite(number: Measurement) -> Measurement:
    if number.value is not None and not math.isfinite(number.value):
        return replace(number, value=None, error=None, reason=f"not finite ({number.value})")
    return (
        number
        if number.error is None or math.isfinite(number.error)
        else replace(number, error=None)
    )


def _details(number: Measurement) -> dict[str, Any]:
    return {name: getattr(number, name) for name in ("error", "error_kind", "reason", "context")}


def _with_error(number: Measurement) -> str:
    if number.value is None:
        return "–"
    return f"{number.value:.4g}" + ("" if number.error is None else f" ± {number.error:.2g}")


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {brief(value)}" for key, value in facts.items())


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
