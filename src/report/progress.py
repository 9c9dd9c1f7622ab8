"""Progress of long work: a bar on a terminal, lines with the time left in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

EVERY_SECONDS = 10  # between two lines of progress in a log file


def shown(what: str) -> Callable[[list[range]], Iterator[range]]:
    """Blocks of images -> the same blocks, shown as they are done under the name ``what``."""

    def show(blocks: list[range]) -> Iterator[range]:
        total = sum(map(len, blocks))
        show_each = _bar if sys.stdout.isatty() else _lines
        return show_each(blocks, what, total)

    return show


def _bar(blocks: list[range], what: str, total: int) -> Iterator[range]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for block in blocks:
            yield block
            bar.advance(task, len(block))


def _lines(blocks: list[range], what: str, total: int) -> Iterator[range]:
    begin = last = time.monotonic()
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        now = time.monotonic()
        if now - last >= EVERY_SECONDS and done < total:
            last = now
            speed = done / (now - begin)
            left = (total - done) / speed
            time_left = f"ETA {int(left // 60)}:{int(left % 60):02d}"
            log.info("%s %d/%d  %.1f images/s  %s", what, done, total, speed, time_left)


def training_bar(visible: bool) -> Progress:
    """A bar with count, time left and the field ``more``; other output scrolls above it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[more]}"),
        transient=True,
        disable=not visible,
        speed_estimate_period=60,
    )
