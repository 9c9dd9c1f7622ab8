"""How long the command line takes to answer, and a training to end its first step.

Times and processor seconds are those of whole processes; a training leaves when its first step has
ended (the default run of digits, W&B offline, the features from the cache).

python benchmarks/startup.py [--runs 5] [--against PATH]

--against: another checkout, measured in turns with this one; its numbers and the ratios follow.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAVE = "callback.leave.on_train_batch_end"
FIRST_STEP = (
    *("src.train", "dataset=digits"),
    "++trusted_packages=[pytorch_lightning,startup]",
    "+callback.leave._target_=pytorch_lightning.callbacks.LambdaCallback",
    *(f"+{LEAVE}._target_=startup.leave", f"+{LEAVE}._partial_=true"),
)
CASES = {
    "train --cfg job": ("src.train", "--cfg", "job"),
    "train --help": ("src.train", "--help"),
    "train schedule=nope (refused)": ("src.train", "schedule=nope"),
    "train, to the first step": FIRST_STEP,
    "sample --help": ("src.sample", "--help"),
}


class Cost(NamedTuple):
    """Of a process, in seconds. work: of the processor."""

    wall: float
    work: float


def leave(*_: object) -> None:
    """End this process, as a callback of the training that is measured."""
    os._exit(0)


def cost(words: Sequence[str], checkout: Path) -> Cost:
    """What a process of the checkout takes, with compiled modules kept, as for any user."""
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT / "benchmarks")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = [f"run_dir={folder}/run"] if words == FIRST_STEP else []
        command = [sys.executable, "-m", *words, *place]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        raise SystemExit(done.stderr.decode())
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(wall, user + system)


def main() -> None:
    """Print minimum and median of each case, and the ratios to those of the other checkout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path)
    asked = parser.parse_args()
    checkouts = [ROOT] if asked.against is None else [ROOT, asked.against.resolve()]
    columns = "here" if asked.against is None else "here, there, ratio"
    print(f"seconds, minimum and median of {asked.runs} runs: {columns}")
    for name, words in CASES.items():
        for checkout in checkouts:
            cost(words, checkout)  # once for the caches
        rounds = [[cost(words, checkout) for checkout in checkouts] for _ in range(asked.runs)]
        for kind in Cost._fields:
            found = [[getattr(one, kind) for one in costs] for costs in zip(*rounds, strict=True)]
            numbers = [(min(times), statistics.median(times)) for times in found]
            if asked.against is not None:
                numbers.append(tuple(here / there for here, there in zip(*numbers, strict=True)))
            shown = "".join(f"{least:>9.2f}{middle:>7.2f}" for least, middle in numbers)
            print(f"{name:<32}{kind}{shown}", flush=True)


if __name__ == "__main__":
    main()
