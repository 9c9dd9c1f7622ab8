"""How cost grows with processes and GPUs: the numbers of docs/scaling.md.

python benchmarks/scaling.py measure [--rounds 3]   # here: ranks, jobs and samples, one thread each
python benchmarks/scaling.py derive                 # for GPUs, from shapes of cifar10_ddpm alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from shape_costs import BATCH, shape_costs

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM = 25, 5
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
RUN = (  # the default DDPM (0.7 M parameters), nothing but steps
    *("logger=csv", "callback.generation=null", "callback.grid=null", "trainer=cpu"),
    "trusted_packages=[scaling]",
    *(f"trainer.max_steps={STEPS}", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
)
WORKS = {  # strong scaling: the batch is shared
    "digits 8x8, batch 128": (),
    "digits 8x8, batch 512": ("dataset.global_batch_size=512",),
    "shapes 32x32, batch 128": ("dataset=shapes",),
}
# Assumptions of the derived part: an H100 SXM, bfloat16.
PEAK = 989e12  # FLOP/s, dense
SHARE = 0.3  # of the peak that convolutions of this size reach
LAUNCH = 5e-6  # seconds per kernel where the CPU cannot keep ahead
# 80 % of the nominal
LINKS = {"NVLink (450 GB/s)": 360e9, "InfiniBand (50 GB/s)": 40e9, "25 Gb Ethernet": 2.5e9}
PER_PARAMETER = {"weights": 4, "gradients": 4, "Adam": 8, "average (EMA)": 4}  # bytes


class Clock(pl.Callback):
    """Every rank writes the seconds of its fastest step, and the CPU seconds of a middling one."""

    def __init__(self, path: str) -> None:
        self.path, self.times = path, []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """One more."""
        self.times.append((time.perf_counter(), time.process_time()))
        if trainer.global_step == STEPS:
            wall, cpu = (
                [b - a for a, b in pairwise(times)]
                for times in zip(*self.times[WARM:], strict=True)
            )
            content = {"wall": min(wall), "cpu": statistics.median(cpu)}
            Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps(content))


def start(entry: str, *words: str) -> subprocess.Popen:
    """A single-thread process of the command line; so is each of its further ranks."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "benchmarks"),
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", f"src.{entry}", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def step_seconds(folder: Path, jobs: int, *words: str) -> tuple[float, float]:
    """Seconds and CPU seconds of a step, of runs at the same time.

    Seconds are those of the fastest step, a mean over the runs; CPU seconds are those of all runs.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    clocks = [
        f"+callback.clock={{_target_:scaling.Clock,path:{place / str(job)}}}" for job in range(jobs)
    ]
    runs = [
        start("train", *RUN, *words, clock, f"hydra.run.dir={place}/run{i}")
        for i, clock in enumerate(clocks)
    ]
    if any(run.wait() for run in runs):
        raise SystemExit("a run failed")
    found = [json.loads(path.read_text()) for path in place.glob("*-*.json")]
    return statistics.mean(one["wall"] for one in found), sum(one["cpu"] for one in found)


def sample_seconds(folder: Path, num: int, *words: str) -> float:
    """Seconds of a whole command that draws ``num`` images."""
    begin = time.perf_counter()
    words = (f"ckpt_path={folder / 'model'}", f"num_samples={num}", "batch_size=32", *words)
    start("sample", *words, f"output={tempfile.mkdtemp(dir=folder)}").wait()
    return time.perf_counter() - begin


def measure(rounds: int) -> None:
    """Fastest of all rounds, in turns: what else the machine does can only slow them down."""
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; "
        "seconds of a step, CPU seconds in brackets"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for work, words in WORKS.items():
            _steps(folder, rounds, work, words)
        start("train", *RUN, f"hydra.run.dir={folder / 'model'}").wait()
        _draws(folder, rounds)


def _steps(folder: Path, rounds: int, work: str, words: tuple[str, ...]) -> None:
    cases = {
        "1 process": lambda: step_seconds(folder, 1, *words),
        "2 ranks": lambda: step_seconds(folder, 1, *words, *TWO),
        "2 jobs": lambda: step_seconds(folder, 2, *words),
    }
    (one, one_cpu), (ranks, ranks_cpu), (jobs, jobs_cpu) = best = _fastest(cases, rounds)
    row = [f"{case} {a:.3f} ({b:.3f})" for case, (a, b) in zip(cases, best, strict=True)]
    print(f"{work}: " + "  ".join(row))
    of_cpu = one_cpu / ranks_cpu
    print(f"  efficiency of 2 ranks {one / ranks / 2:.2f}, by CPU time {of_cpu:.2f}")
    of_cpu = 2 * one_cpu / jobs_cpu
    print(f"  efficiency of 2 jobs  {one / jobs:.2f}, by CPU time {of_cpu:.2f}", flush=True)


def _draws(folder: Path, rounds: int) -> None:
    draws = {
        (num, words): lambda num=num, words=words: (sample_seconds(folder, num, *words),)
        for words in ((), TWO)
        for num in (64, 1088)
    }
    (few,), (many,), (few_of_two,), (many_of_two,) = _fastest(draws, rounds)
    more, more_of_two = many - few, many_of_two - few_of_two
    print(f"start and 64 images {few:.1f} s, 2 ranks {few_of_two:.1f} s; ", end="")
    print(f"1,024 images more {more:.1f} s, 2 ranks {more_of_two:.1f} s: ", end="")
    print(f"efficiency {more / more_of_two / 2:.2f}")


def _fastest(
    cases: dict[Any, Callable[[], tuple[float, ...]]], rounds: int
) -> list[tuple[float, ...]]:
    """Of each case the least of every number, after all have taken turns."""
    found = [[run() for run in cases.values()] for _ in range(rounds)]
    return [tuple(map(min, zip(*measured, strict=True))) for measured in zip(*found, strict=True)]


def derive() -> None:
    """Print the derived tables of docs/scaling.md."""
    costs = shape_costs()
    print({name: f"{value:.4g}" for name, value in costs.items()})
    _ranks(costs)
    _memory(costs)
    _samples(costs)


def _ranks(costs: dict[str, float]) -> None:
    image = (costs["forward"] + costs["backward"]) / (PEAK * SHARE)
    floor = costs["kernels"] * LAUNCH
    volume = 4 * costs["parameters"]
    print(
        f"\na step: {1000 * image * BATCH:.1f} ms of arithmetic at batch {BATCH}, "
        f"{1000 * floor:.1f} ms of launches"
    )
    print("GPUs  images each  volume MB  arithmetic ms " + "".join(f"{name:>24}" for name in LINKS))
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128):
        sent = 2 * (gpus - 1) / gpus * volume
        compute = BATCH / gpus * image
        row = f"{gpus:>4}{BATCH / gpus:>13.0f}{sent / 1e6:>11.0f}{1000 * compute:>15.2f} "
        for speed in LINKS.values():
            ideal, real = (max(least, compute) for least in (0.0, floor))
            efficiency = [
                image * BATCH / gpus / (t + max(0, sent / speed - 2 / 3 * t)) for t in (ideal, real)
            ]
            row += f"{1000 * sent / speed:>10.2f} ms {efficiency[0]:>4.2f} {efficiency[1]:>4.2f}"
        print(row)
    for name, speed in LINKS.items():
        needed, many = 1.5 * 2 * volume / speed / image, BATCH * image
        weak = many / (many + max(0, 2 * volume / speed - 2 / 3 * many))
        print(
            f"{name}: hidden from {needed:.0f} images per GPU; "
            f"with {BATCH} on each of many GPUs {100 * weak:.0f} %"
        )


def _memory(costs: dict[str, float]) -> None:
    each = sum(PER_PARAMETER.values())
    print(
        f"\nbytes per parameter {PER_PARAMETER}; "
        f"activations {costs['activations'] / 1e6:.0f} MB per image (float32)"
    )
    for parameters in (costs["parameters"], 1e9, 10e9):
        sizes = {gpus: each * parameters / gpus / 1e9 for gpus in (1, 8, 64)}
        row = "  ".join(f"{gpus} GPUs {size:.3g} GB" for gpus, size in sizes.items())
        print(f"{parameters / 1e6:.0f} M: DDP {each * parameters / 1e9:.3g} GB each; FSDP {row}")


def _samples(costs: dict[str, float]) -> None:
    print("\n50,000 samples, minutes on N GPUs")
    for steps in (1000, 50):
        seconds = 50_000 * steps * costs["forward"] / (PEAK * SHARE)
        row = "  ".join(f"{gpus}: {seconds / gpus / 60:.3g}" for gpus in (1, 8, 64, 196))
        print(f"{steps} evaluations: {row}")


def main() -> None:
    """Measure or derive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "derive"))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.what == "measure":
        measure(chosen.rounds)
    else:
        derive()


if __name__ == "__main__":
    main()
