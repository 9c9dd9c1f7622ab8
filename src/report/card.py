"""The metric card of a model: each number with its uncertainty, its context and a reading."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from src.config.words import brief
from src.files import write_json, write_text
from src.foreign import printable
from src.metric.base import Measurement
from src.report.escape import code, inline, line
from src.report.pictures import save_png
from src.report.readings import reading
from src.report.table import markdown_table, terminal
from src.rundir.directory import keep_earlier
from src.rundir.lock import one_at_a_time

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
LOCK = ".evaluation.lock"


@dataclass
class Card:
    """All numbers of one model.

    Arguments:
        title: what was measured.
        context: what all numbers depend on.
        numbers: by name, as in ``test/fid_classifier_360``.
        notes: what was left out and why.
        pictures: ``bound`` -> RGB (H, W, 3) uint8.
    """

    title: str
    context: dict[str, Any]
    numbers: dict[str, Measurement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, stage: str, measured: Mapping[str, Measurement], **context: object) -> None:
        """Take over numbers as ``<stage>/<name>``, with context that they share.

        A number that is not finite is none, and says so as its reason.
        """
        for name, number in measured.items():
            self.numbers[f"{stage}/{name}"] = _finite(number).within(**context)

    @property
    def values(self) -> dict[str, float | None]:
        """Flat name -> value."""
        return {name: number.value for name, number in self.numbers.items()}

    def write(self, directory: Path) -> list[Path]:
        """``evaluation.json``, ``evaluation.md`` and pictures in ``directory``.

        Those of an earlier evaluation are renamed ``evaluation-1.json`` and so on, all with one
        number; evaluations that end at once write one after the other. Returns the paths of the new
        ones.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(directory / LOCK):  # else two that end at once would rename one card
            keep_earlier(*(directory / name for name in FILES))
            files = [directory / name for name in FILES[:2]]
            details = {name: _details(number) for name, number in self.numbers.items()}
            extra = {"details": details, "context": self.context, "notes": self.notes}
            write_json(files[0], self.values | extra)
            write_text(files[1], self._markdown())
            for name, picture in self.pictures.items():
                files.append(directory / f"evaluation-{name}.png")
                save_png(picture, files[-1])
        return files

    def show(self) -> None:
        """Print the card as a table."""
        table = Table(title=_text(self.title), title_justify="left")
        table.add_column("metric", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("reading")
        for heading, names in self._sections():
            table.add_section()
            table.add_row(Text(heading, style="bold"))
            for name in names:
                number = _with_error(self.numbers[name])
                table.add_row(_text(f"  {name}"), number, _text(self._reading(name)))
        console = terminal(soft_wrap=True)
        console.print(table)
        for note in self.notes:
            console.print(_text(f"  {note}"))

    def _sections(self) -> list[tuple[str, list[str]]]:
        """Headings with the names below them; without what can have no number here."""
        sections: dict[str, list[str]] = {heading: [] for heading in (*SECTIONS, OTHER)}
        for name, number in self.numbers.items():
            if number.applies:
                sections[_heading(name)].append(name)
        return [(heading, names) for heading, names in sections.items() if names]

    def _reading(self, name: str) -> str:
        number = self.numbers[name]
        return number.reason or reading(name, self.values, number.context)

    def _markdown(self) -> str:
        lines = [f"# {inline(self.title)}", ""]
        for heading, names in self._sections():
            rows = [(code(n), _with_error(self.numbers[n]), self._reading(n)) for n in names]
            lines += [f"## {heading}", ""]
            lines += markdown_table(("metric", "value", "reading"), rows, right={1})
            lines += ["", *self._facts(names), *self._kinds_of_error(names), ""]
        lines += ["## Context", ""]
        facts = [f"{name}: {brief(value)}" for name, value in self.context.items()]
        lines += [f"- {line(text)}" for text in (*facts, *self.notes)]
        return "\n".join(lines) + "\n"

    def _facts(self, names: Sequence[str]) -> Iterator[str]:
        """What each number depends on beyond the context of the card.

        A line for what all share, then a line for each set of facts that only some have.
        """
        contexts = {name: _without(self.numbers[name].context, self.context) for name in names}
        shared = _shared(list(contexts.values()))
        if shared:
            yield f"- all: {inline(_listed(shared))}"
        own: dict[str, list[str]] = defaultdict(list)
        for name, context in contexts.items():
            rest = {key: value for key, value in context.items() if key not in shared}
            own[_listed(rest)].append(name)
        for facts, owners in own.items():
            if facts:
                yield f"- {_quoted(owners)}: {inline(facts)}"

    def _kinds_of_error(self, names: Sequence[str]) -> Iterator[str]:
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if self.numbers[name].error is not None:
                kinds[self.numbers[name].error_kind].append(name)
        for kind, owners in kinds.items():
            yield f"- ± is {inline(kind)}: {_quoted(owners)}"


def _heading(name: str) -> str:
    """The section of a number."""
    stage, _, rest = name.partition("/")
    for heading, starts in SECTIONS.items():
        if stage == "test" and rest.startswith(starts):
            return heading
    return OTHER


def _finite(number: Measurement) -> Measurement:
    """Without a value or an error that is not finite."""
    if number.value is not None and not math.isfinite(number.value):
        return replace(number, value=None, error=None, reason=f"not finite ({number.value})")
    if number.error is not None and not math.isfinite(number.error):
        return replace(number, error=None)
    return number


def _without(context: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a context that is not known already."""
    return {key: value for key, value in context.items() if known.get(key) != value}


def _shared(contexts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all contexts say alike, in the order of the first."""
    first, *others = contexts
    found = dict(first)
    for context in others:
        found = {key: value for key, value in found.items() if context.get(key) == value}
    return found


def _details(number: Measurement) -> dict[str, Any]:
    return {name: getattr(number, name) for name in ("error", "error_kind", "reason", "context")}


def _with_error(number: Measurement) -> str:
    if number.value is None:
        return "–"
    if number.error is None:
        return f"{number.value:.4g}"
    return f"{number.value:.4g} ± {number.error:.2g}"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {brief(value)}" for key, value in facts.items())


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(code, names))


def _text(text: str) -> Text:
    """For the terminal: no markup, and nothing that acts."""
    return Text(printable(text))
