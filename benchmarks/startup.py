"""How long the command line takes to answer: --help, --cfg job and a refused setting.

Times are those of whole processes.

python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "train --help": ["src.train", "--help"],
    "train --cfg job": ["src.train", "--cfg", "job"],
    "train schedule=nope (refused)": ["src.train", "schedule=nope"],
    "sample --help": ["src.sample", "--help"],
    "import torch (for scale)": None,
}


def seconds(words: list[str] | None) -> float:
    """Wall-clock seconds of one process."""
    command = (
        [sys.executable, "-c", "import torch"] if words is None else [sys.executable, "-m", *words]
    )
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - begin


def main() -> None:
    """Print minimum, median and maximum of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{'command':<32}{'min':>8}{'median':>8}{'max':>8}   seconds, {runs} runs")
    for name, words in CASES.items():
        seconds(words)  # once for the file cache
        times = [seconds(words) for _ in range(runs)]
        print(f"{name:<32}{min(times):>8.2f}{statistics.median(times):>8.2f}{max(times):>8.2f}")


if __name__ == "__main__":
    main()
