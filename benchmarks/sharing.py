"""How fast training is beside other work, against alone: beside a busy process, another run, a job.

python benchmarks/sharing.py [--rounds 3] [--steps 200] [--root DATA] [--settings chosen spin]

Each of the settings is what the environment says of OpenMP's threads, as in
OMP_NUM_THREADS=1,GOMP_SPINCOUNT=1000; chosen: what the program chooses; spin: what GNU's library
does by itself. They take turns; of several runs at a time the slowest counts, of the rounds the
fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKS = ("model=ddpm dataset=digits", "model=vae dataset=mnist")
BATCH = 128  # conf/train.yaml
NOTHING_ELSE = (
    *("logger=csv", "callback.generation=null", "callback.grid=null"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
)
BUSY = {  # single-threaded; the second one goes through 64 MB of memory again and again
    "busy": "while True: pass",
    "busy memory": "x = bytearray(1 << 26)\nwhile True: x = x[:]",
}
NAMED: dict[str, dict[str, str]] = {"chosen": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}


def start(
    place: Path, words: tuple[str, ...], settings: Mapping[str, str], *more: str
) -> subprocess.Popen:
    """A process of the command line that trains in ``place``, or below it with ``--multirun``."""
    where = "hydra.sweep.dir" if "--multirun" in more else "hydra.run.dir"
    command = [sys.executable, "-m", "src.train", *more, *NOTHING_ELSE, *words, f"{where}={place}"]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.DEVNULL)


def steps_per_second(runs: list[subprocess.Popen], place: Path) -> float:
    """Of the slowest run below ``place``; ends the program where one has failed."""
    if any(run.wait() for run in runs):
        raise SystemExit("a run failed")
    found = [json.loads(path.read_text()) for path in place.rglob("metrics.json")]
    return min(1 / _step_seconds(one) for one in found)


def _step_seconds(metrics: Mapping[str, float]) -> float:
    """Measured, or from the whole fit where the run has not measured it."""
    if "step_seconds" in metrics:
        return metrics["step_seconds"] / metrics["step"]
    return BATCH / metrics["images_per_second"]


@contextmanager
def busy(code: str) -> Iterator[None]:
    """Beside a process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def cases_of(
    words: tuple[str, ...], settings: Mapping[str, str]
) -> dict[str, Callable[[Path], float]]:
    """What is measured of a work: the case, and steps per second of a run in it."""

    def alone(place: Path) -> float:
        return steps_per_second([start(place / "0", words, settings)], place)

    def beside(code: str, place: Path) -> float:
        with busy(code):
            return alone(place)

    def two(place: Path) -> float:
        runs = [start(place / name, words, settings) for name in "01"]
        return steps_per_second(runs, place)

    def jobs(place: Path) -> float:
        sweep = ("--multirun", "seed=0,1", "launcher.jobs=2")  # options go first
        return steps_per_second([start(place, words, settings, *sweep)], place)

    beside_busy = {
        f"beside {name}": lambda place, code=code: beside(code, place)
        for name, code in BUSY.items()
    }
    return {"alone": alone, **beside_busy, "two at once": two, "launcher.jobs=2": jobs}


def main() -> None:
    """Print steps per second of each case, and the ratio to the same settings alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--root", default="data", help="dataset.root")
    parser.add_argument("--settings", nargs="+", default=["chosen"])
    chosen = parser.parse_args()
    common = (f"trainer.max_steps={chosen.steps}",)
    for work in WORKS:
        root = (f"dataset.root={chosen.root}",) if "mnist" in work else ()
        _table(work, (*common, *work.split(), *root), chosen.settings, chosen.rounds)


def _variables(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(","))


def _table(work: str, words: tuple[str, ...], settings: list[str], rounds: int) -> None:
    best: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for name in settings:
            variables = NAMED[name] if name in NAMED else _variables(name)
            for case, run in cases_of(words, variables).items():
                with tempfile.TemporaryDirectory() as folder:
                    speed = run(Path(folder))
                best[name, case] = max(speed, best.get((name, case), 0))
    print(f"{work}: steps per second, fastest of {rounds}; in brackets against alone")
    for name in settings:
        row = [
            f"{case} {speed:.1f} ({speed / best[name, 'alone']:.2f})"
            for (other, case), speed in best.items()
            if other == name
        ]
        print(f"  {name:<28} " + "  ".join(row), flush=True)


if __name__ == "__main__":
    main()
