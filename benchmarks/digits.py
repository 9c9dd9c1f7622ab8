"""Is the default run good? Train it with several seeds and report time, share of convincing digits, distance and floor.

python benchmarks/digits.py [--seeds 3] [more overrides of src.train ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("confident_classifier", "fid_classifier", "fid_floor_classifier", "accuracy_of_classifier", "loss")


def run(seed: int, overrides: list[str]) -> dict[str, float]:
    """Metrics of one default run as a process of its own, with its wall-clock seconds."""
    with tempfile.TemporaryDirectory() as directory:
        words = [f"seed={seed}", f"hydra.run.dir={directory}/run", *overrides]
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "src.train", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((Path(directory) / "run" / "metrics.json").read_text())
        return {name: metrics[f"test/{name}"] for name in SHOWN} | {"wall seconds": time.perf_counter() - begin}


def main() -> None:
    """Print a line per seed, and mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments, overrides = parser.parse_known_args()
    rows = []
    for seed in range(arguments.seeds):
        rows.append(run(seed, overrides))
        print(f"seed {seed}: " + "  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:<24} {statistics.mean(values):.4g} ± {spread:.2g}")


if __name__ == "__main__":
    main()
