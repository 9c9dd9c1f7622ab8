"""What a reader must know to trust a comparison: what is not comparable, how it was measured, which runs it is of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from src.comparison.comparison import CONDITIONS, SEEDS, Comparison, direction
from src.comparison.runs import Run
from src.config.words import brief

LOSS = (
    "model",
    "likelihood",
    "beta",
    "prediction",
    "weighting",
)  # choices with which a loss changes its meaning
FACTS = (
    "estimate",
    "importance_samples",
    "timesteps",
    "num_repeats",
)  # context of a number, beside its conditions
OF_ONE_RUN = (
    "checkpoint",
    "step",
    "parameters",
    "sampling_seconds_per_image",
    "overrides",
)  # shown elsewhere


def notes(comparison: Comparison, best: str) -> list[str]:
    """Lines below the table, warnings first. best: how the best values are marked."""
    found = [*_not_comparable(comparison), *_not_evaluated(comparison), *_elsewhere(comparison)]
    if any(name.endswith("/loss") for name in comparison.metrics) and set(comparison.choices) & set(
        LOSS
    ):
        found.append("loss: what each setting minimises, not a yardstick between them")
    commits = Counter(run.commit for run in comparison.runs)
    if len(commits) > 1:
        found.append(
            f"not of one commit: {', '.join(f'{name} ({num})' for name, num in commits.items())}"
        )
    if any(comparison.best(name) for name in comparison.metrics):
        found.append(
            f"{best}: best value, whatever the error bars; only where a direction is known and the numbers compare"
        )
    return [*found, *_errors(comparison)]


def _not_comparable(comparison: Comparison) -> Iterator[str]:
    """A line per condition that the settings do not share, with the metrics it concerns."""
    sides: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    concerned: dict[str, list[str]] = defaultdict(list)
    for name in comparison.metrics:
        for key, labels in comparison.obstacles(name).items():
            if direction(name) or key.startswith(("dataset", "features")):
                concerned[key].append(name)
                for value, owners in labels.items():
                    sides[key][value] += owners
    for key, names in concerned.items():
        text = "; ".join(
            f"{value}: {listed(list(dict.fromkeys(owners)))}"
            for value, owners in sides[key].items()
        )
        metrics = "all metrics" if names == comparison.metrics else listed(names)
        yield f"not comparable: {key} differs ({text}): {metrics}"


def _not_evaluated(comparison: Comparison) -> Iterator[str]:
    """Runs whose numbers are those of the end of training, or that have none."""
    without = [run for run in comparison.runs if not run.evaluated and run.numbers]
    if without:
        command = (
            f"python -m src.evaluate ckpt_path={without[0].path if len(without) == 1 else 'RUN'}"
        )
        yield f"not evaluated, as measured at the end of training: {_paths(without)} ({command})"
    unfinished = [run for run in comparison.runs if not run.numbers]
    if unfinished:
        yield f"without numbers (neither metrics.json nor evaluation.json): {_paths(unfinished)}"


def _elsewhere(comparison: Comparison) -> Iterator[str]:
    """Evaluations of another state than the last one."""
    for run in comparison.runs:
        step = run.context.get("step", run.last_step)
        if run.last_step not in (None, step):
            yield f"evaluated at step {step} of {run.last_step}: {run.path}"


def _errors(comparison: Comparison) -> Iterator[str]:
    shown = [
        s.numbers[name]
        for s in comparison.settings
        for name in comparison.metrics
        if name in s.numbers
    ]
    kinds = sorted(
        {
            number.error_kind
            for number in shown
            if number.error is not None and number.error_kind != SEEDS
        }
    )
    if any(len(setting.runs) > 1 for setting in comparison.settings):
        kinds.insert(0, f"{SEEDS} where n > 1" + ", else of the one run:" * bool(kinds))
    if kinds:
        yield f"±: {', '.join(kinds).replace(':,', ':')}"


def how_measured(comparison: Comparison) -> list[str]:
    """The section of the page on the context of the numbers: what all share once, what differs by setting."""
    evaluated = [setting for setting in comparison.settings if setting.runs[0].evaluated]
    lines = []
    for key in dict.fromkeys(
        key for s in evaluated for run in s.runs for key in run.context if key not in OF_ONE_RUN
    ):
        labels: dict[str, list[str]] = defaultdict(list)
        for setting in evaluated:
            labels[_joined(run.context.get(key) for run in setting.runs)].append(setting.label)
        sides = [
            f"{value} ({', '.join(owners)})" if len(labels) > 1 else value
            for value, owners in labels.items()
        ]
        lines.append(f"- {'seed of the evaluation' if key == 'seed' else key}: {'; '.join(sides)}")
    facts: dict[str, list[str]] = defaultdict(list)
    for name in comparison.metrics:
        facts[
            _facts(
                [setting.numbers[name].context for setting in evaluated if name in setting.numbers]
            )
        ].append(name)
    lines += [
        f"- {text}: {', '.join(f'`{name}`' for name in names)}"
        for text, names in facts.items()
        if text
    ]
    return ["## How it was measured", "", *lines, ""] if lines else []


def _facts(contexts: Sequence[dict[str, Any]]) -> str:
    keys = dict.fromkeys(
        key for context in contexts for key in context if key in (*CONDITIONS, *FACTS)
    )
    return ", ".join(
        f"{key} {_joined(context[key] for context in contexts if key in context)}" for key in keys
    )


def runs_table(comparison: Comparison) -> list[str]:
    """The section of the page on the runs: where they lie, what was typed, which code."""
    lines = [
        "## Runs",
        "",
        "| setting | run | seed | step | evaluated | commit | typed |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in comparison.settings:
        for run in setting.runs:
            words = " ".join(
                word
                for word in run.provenance.get("overrides") or []
                if not word.startswith("run_dir=")
            )
            step = run.last_step if run.last_step is not None else run.context.get("step", "")
            row = [
                setting.label,
                run.path,
                run.seed,
                step,
                run.settings["evaluation"],
                run.commit,
                f"`{words}`" if words else "",
            ]
            lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |")
    return lines


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c and 5 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _paths(runs: Sequence[Run]) -> str:
    return listed([str(run.path) for run in runs])


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(brief, values)))
