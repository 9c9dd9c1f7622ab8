"""Where the numbers of a comparison come from: how they were measured, and of which runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from src.comparison.comparison import Comparison
from src.comparison.pooling import CONDITIONS, Setting
from src.comparison.runs import Run
from src.config.words import brief
from src.report.escape import code, inline, line
from src.report.table import markdown_table

# context of a number that is shown, beside its conditions
FACTS = ("estimate", "importance_samples", "timesteps", "num_repeats")
# context of an evaluation that is shown elsewhere
OF_ONE_RUN = ("checkpoint", "step", "parameters", "sampling_seconds_per_image", "overrides")
COLUMNS = ("setting", "run", "seed", "step", "evaluated", "commit", "typed")


def how_measured(comparison: Comparison) -> list[str]:
    """The section on the context of the numbers: what all settings share, what differs."""
    evaluated = [setting for setting in comparison.settings if setting.runs[0].evaluated]
    lines = [*_contexts(evaluated), *_metrics(comparison.metrics, evaluated)]
    return ["## How it was measured", "", *lines, ""] if lines else []


def runs_table(comparison: Comparison) -> list[str]:
    """The section on the runs: where they lie, what was typed, which code."""
    rows = [_row(setting.label, run) for setting in comparison.settings for run in setting.runs]
    return ["## Runs", "", *markdown_table(COLUMNS, rows)]


def _contexts(settings: Sequence[Setting]) -> Iterator[str]:
    """A line for each fact about the evaluations: its value, or the values with their owners."""
    contexts = [run.context for setting in settings for run in setting.runs]
    for key in _keys(contexts):
        if key in OF_ONE_RUN:
            continue
        labels: dict[str, list[str]] = defaultdict(list)
        for setting in settings:
            value = _joined(run.context.get(key) for run in setting.runs)
            labels[value].append(setting.label)
        sides = list(labels)
        if len(labels) > 1:
            sides = [f"{value} ({', '.join(owners)})" for value, owners in labels.items()]
        name = "seed of the evaluation" if key == "seed" else key
        yield f"- {line(name)}: {inline('; '.join(sides))}"


def _metrics(names: Sequence[str], settings: Sequence[Setting]) -> Iterator[str]:
    """A line for each set of facts that metrics share."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name in names:
        having = [setting for setting in settings if name in setting.numbers]
        facts = _facts([setting.numbers[name].context for setting in having])
        owners[facts].append(code(name))
    for facts, metrics in owners.items():
        if facts:
            yield f"- {line(facts)}: {', '.join(metrics)}"


def _facts(contexts: Sequence[dict[str, Any]]) -> str:
    found = []
    for key in _keys(contexts):
        if key in (*CONDITIONS, *FACTS):
            values = _joined(context[key] for context in contexts if key in context)
            found.append(f"{key} {values}")
    return ", ".join(found)


def _row(label: str, run: Run) -> list[object]:
    typed = run.provenance.get("overrides") or []
    words = " ".join(word for word in typed if not word.startswith("run_dir="))
    step = run.context.get("step", "") if run.last_step is None else run.last_step
    evaluated = run.settings["evaluation"]
    return [label, run.path, run.seed, step, evaluated, run.commit, code(words)]


def _keys(contexts: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all contexts, in the order in which they come."""
    return list(dict.fromkeys(key for context in contexts for key in context))


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(brief, values)))
