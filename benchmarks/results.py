"""The measurements of docs/results.md: train, evaluate and compare.

What is there already is not done again.

python benchmarks/results.py digits      # all models, predictions, schedules: one table
python benchmarks/results.py samplers    # Fréchet distance over the number of steps: figure, table
python benchmarks/results.py mnist --root ../shared/data
                                         # the VAE of the IWAE paper, IWAE-5000 on 1,000 test images
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
DIGITS = {
    "ae": ["model=ae"],
    "vae": ["experiment=digits_vae"],
    "beta_vae": ["experiment=digits_vae", "beta.value=4"],
    "ddpm": ["experiment=digits_ddpm"],
    "ddpm-x0": ["experiment=digits_ddpm", "prediction=sample"],
    "ddpm-v": ["experiment=digits_ddpm", "prediction=velocity"],
    "ddpm-linear": ["experiment=digits_ddpm", "schedule=linear"],
    "ddpm-quadratic": ["experiment=digits_ddpm", "schedule=quadratic"],
    "ddpm-sigmoid": ["experiment=digits_ddpm", "schedule=sigmoid"],
}
SAMPLERS = {
    "ddim": ["sampler=ddim", "sampler.eta=0"],
    "ddpm (large)": ["sampler=ddpm", "sampler.variance=large"],
    "ddpm (small)": ["sampler=ddpm", "sampler.variance=small"],
    "ddim eta=1": ["sampler=ddim", "sampler.eta=1"],
    "heun": ["sampler=heun"],
    "dpm_solver": ["sampler=dpm_solver"],
}
TABLE = (
    "fid_classifier*",
    "fid_c*",
    "kid*",
    "confident*",
    "precision*",
    "recall*",
    "coverage*",
    "memorised*",
    "bits_per_dim",
)
DEFAULT_SAMPLER = "ddim eta=1"
DISTANCES = (0.7, 1, 1.5, 2, 3, 5, 7)  # ticks
STEPS = (5, 10, 20, 50, 100)
THREE_SETS = ("metric=fast", "metric.num_repeats=3", "score=null")


def call(entry: str, *words: str) -> None:
    """Run ``python -m src.<entry>`` from the project's root; its output is ours."""
    print(f"$ python -m src.{entry} {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", f"src.{entry}", *words], cwd=ROOT, check=True)


def trained(run: Path, *overrides: str) -> Path:
    """The run in ``run``, trained now unless it is finished."""
    if not (run / "metrics.json").exists():
        call("train", *overrides, "logger=csv", "resume=auto", f"hydra.run.dir={run}")
    return run


def evaluated(run: Path, output: Path, *overrides: str) -> dict[str, float]:
    """The card of a run in ``output``, measured now unless it is there."""
    if not (output / "evaluation.json").exists():
        call("evaluate", f"ckpt_path={run}", f"output={output}", "logger=[]", *overrides)
    return json.loads((output / "evaluation.json").read_text())


def digits(folder: Path, seeds: list[int]) -> None:
    """Train and evaluate every row with every seed, then compare.

    The first diffusion is evaluated with every sampler as well.
    """
    runs = []
    for name, overrides in DIGITS.items():
        for seed in seeds:
            runs.append(trained(folder / f"{name}-{seed}", *overrides, f"seed={seed}"))
            evaluated(runs[-1], runs[-1])
    for name, overrides in SAMPLERS.items():
        for seed in seeds if name != DEFAULT_SAMPLER else ():
            runs.append(folder / f"sampler-{_file_name(name)}-{seed}")
            evaluated(folder / f"ddpm-{seed}", runs[-1], *overrides, "score=null")
    call(
        "compare",
        *map(str, runs),
        "--output",
        str(folder),
        *(word for name in TABLE for word in ("--metric", name)),
    )


def samplers(folder: Path, seed: int) -> None:
    """Distance over steps for every sampler on one model; three sets of samples each."""
    run = trained(folder / f"ddpm-{seed}", *DIGITS["ddpm"], f"seed={seed}")
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    print(
        f"| sampler | {' | '.join(f'{steps} steps' for steps in STEPS)} |\n"
        f"|---|{'---:|' * len(STEPS)}"
    )
    for name, overrides in SAMPLERS.items():
        cells, values = [], []
        for steps in STEPS:
            settings = [*overrides, f"sampler.num_steps={steps}", *THREE_SETS]
            card = evaluated(run, folder / "samplers" / f"{_file_name(name)}-{steps}", *settings)
            metric = next(key for key in card if key.startswith("test/fid_classifier"))
            values.append(card[metric])
            cells.append(f"{card[metric]:.2f} ± {card['details'][metric]['error']:.2f}")
        # ddpm (small) lies on it
        axes.plot(STEPS, values, "o--" if name == DEFAULT_SAMPLER else "o-", label=name)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    floor = next(value for key, value in card.items() if key.startswith("test/fid_floor"))
    axes.axhline(floor, color="black", linestyle=":", label="floor: real test images")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="sampling steps",
        ylabel="Fréchet distance (classifier, 360 images)",
    )
    axes.set_xticks(STEPS, map(str, STEPS))
    axes.set_yticks(DISTANCES, map(str, DISTANCES))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "sampler_steps.png")
    print(f"figure: {folder / 'sampler_steps.png'}")


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")


def mnist(folder: Path, root: str) -> None:
    """Train experiment=mnist_vae_200 and measure its likelihood as in the IWAE paper.

    One thread and one loader are fastest for so small a network.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    run = trained(folder / "mnist_vae_200", "experiment=mnist_vae_200", f"dataset.root={root}")
    evaluated(run, run, "metric=none", "score.importance_samples=5000", "score.num_images=1000")


def main() -> None:
    """Do what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("digits", "samplers", "mnist"))
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "outputs" / "results", help="of runs and results"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--root", default="data", help="dataset.root of MNIST")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.what == "digits":
        digits(folder, arguments.seeds)
    elif arguments.what == "samplers":
        samplers(folder, arguments.seeds[0])
    else:
        mnist(folder, arguments.root)


if __name__ == "__main__":
    main()
