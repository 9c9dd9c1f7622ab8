"""What a training step costs beside a bare loop over tensors in memory, and beside peers.

python benchmarks/step.py [--works own vae full unet] [--rounds 5] [--root DATA]

Each contestant trains in a process of its own, and they take turns. Milliseconds per optimiser
step: medians over the rounds; in brackets ratio and difference to the first contestant, medians of
those of each round. Ours is ``python -m src.train`` with logging and checks, of which
``step_seconds`` counts: neither validation nor saving nor set-up. The bare loop has the same model,
the same fused optimiser, and nothing else. Peers: ``pip install -e '.[bench]'``; one that is not
installed is left out. --works own is about Python: one thread, a network of 2,000 weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
USUAL = "callback=[finite,checkpoint,lr_monitor,progress,throughput]"
AVERAGED = USUAL.replace("]", ",ema]")
MLP = ("network=mlp_autoencoder", "model.latent_dim=8")
WIDE = (*MLP, "network.encoder.hidden=[512]", "network.decoder.hidden=[512]")
NARROW = (*MLP, "network.encoder.hidden=[64]", "network.decoder.hidden=[64]")
TINY = (*MLP, "network.encoder.hidden=[12]", "network.decoder.hidden=[12]")
TRUSTED = "trusted_packages=[step_contestants]"
MANY = (TRUSTED, "dataset.load={_target_:step_contestants.many,_partial_:true}")
HO = ("network=unet", "network.channels=64", "network.dropout=0", "schedule=linear")
CIFAR = (TRUSTED, "dataset.load={_target_:step_contestants.coloured,_partial_:true}")


class Work(NamedTuple):
    """What is trained: words of the command line, steps, and who takes part, the yardstick first.

    threads: 0 leaves the number to the machine.
    """

    words: tuple[str, ...]
    steps: int
    contestants: tuple[str, ...]
    threads: int = 0


WORKS = {
    "own": Work(("model=ae", AVERAGED, *TINY), 1500, ("lightning", "bare", "ours"), 1),
    "vae": Work(
        ("model=vae", "dataset=mnist", USUAL, *WIDE), 390, ("bare", "ours", "pythae", "torchvision")
    ),
    "full": Work(
        ("model=vae", USUAL, *MANY, "dataset.global_batch_size=20000", *NARROW),
        60,
        ("bare", "ours"),
    ),
    "unet": Work(
        (
            "model=ddpm",
            USUAL,
            "dataset=cifar10",
            *CIFAR,
            *HO,
            "dataset.global_batch_size=32",
        ),
        8,
        ("bare", "ours", "diffusers"),
    ),
}
PEERS = ("pythae", "torchvision", "diffusers")


def seconds(contestant: str, work: Work, root: str) -> float:
    """Seconds per step of one contestant, in a process of its own."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "offline"}
    if work.threads:
        environment["OMP_NUM_THREADS"] = str(work.threads)
    words = (*work.words, f"dataset.root={root}")
    code = (
        "from src.config.threads import choose_threads; choose_threads()\n"
        f"import step_contestants\nprint(step_contestants.{contestant}({words}, {work.steps}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{contestant}: {done.stderr.strip() or done.stdout.strip()}")
    return float(done.stdout.split()[-1])


def measure(work: Work, rounds: int, root: str) -> None:
    """Print a line for each contestant; they take turns."""
    there = [
        name for name in work.contestants if name not in PEERS or importlib.util.find_spec(name)
    ]
    times: dict[str, list[float]] = {name: [] for name in there}
    for _ in range(rounds):
        for name in there:
            times[name].append(1000 * seconds(name, work, root))
    first = times[there[0]]
    for name in there:
        ratios = [own / other for own, other in zip(times[name], first, strict=True)]
        over = statistics.median(own - other for own, other in zip(times[name], first, strict=True))
        middle, ratio = statistics.median(times[name]), statistics.median(ratios)
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        print(
            f"  {name:<12}{middle:8.2f} ms  ({ratio:.2f} x, {over:+.2f} ms)   {spread}", flush=True
        )
    for name in set(work.contestants) - set(there):
        print(f"  {name:<12}not installed")


def main() -> None:
    """Print a table for each work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=["own", "vae", "full"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", default="data", help="dataset.root, with MNIST")
    chosen = parser.parse_args()
    for name in chosen.works:
        work = WORKS[name]
        print(f"{name}: {work.steps} steps, median of {chosen.rounds} rounds, least to most")
        measure(work, chosen.rounds, str(Path(chosen.root).resolve()))


if __name__ == "__main__":
    main()
