"""How long the metrics take at the size of a published evaluation, in seconds on this machine.

python benchmarks/metrics.py [--num 10000] [--dim 2048] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from src.metric.base import Reference, Samples
from src.metric.beta_vae import beta_vae_score
from src.metric.dci import boosted_importance
from src.metric.factor_table import FactorTable
from src.metric.factor_vae import factor_vae_score
from src.metric.fid import Fid
from src.metric.kid import Kid
from src.metric.mig import mig
from src.metric.neighbours import Memorised, Neighbours
from src.metric.sap import sap
from src.noise import generator

FACTOR_SIZES = (3, 4, 8, 8, 8)  # of dataset=shapes
LATENTS = 10
TRAIN, TEST, BATCH = 10_000, 5_000, 64  # as in disentanglement_lib


def timed(name: str, work: Callable[[], object]) -> None:
    """Print the seconds that a piece of work takes."""
    begin = time.perf_counter()
    work()
    print(f"{name:<48}{time.perf_counter() - begin:>9.2f}", flush=True)


def generation(num: int, dim: int) -> None:
    """Metrics of ``num`` generated, real and held-out images with ``dim`` features each."""
    random = generator("benchmark", "features")
    mixing = torch.randn(dim, dim, generator=random) / dim**0.5
    real, fake, held_out = (torch.randn(num, dim, generator=random) @ mixing for _ in range(3))
    reference, unseen = Reference(real), Reference(held_out)
    samples = Samples(reference, fake, held_out)
    timed("moments and eigenvectors of real images (cached)", lambda: reference.moments.root)
    timed("fid, fid_corrected", lambda: Fid()(samples))
    timed("fid_floor", lambda: Fid().floor(reference, unseen))
    timed("kid", lambda: Kid(num)(samples))
    timed("precision, recall, density, coverage", lambda: Neighbours(5, num)(samples))
    timed("memorised", lambda: Memorised()(samples))


def disentanglement() -> None:
    """The five scores of noisy, rotated codes of all images of ``dataset=shapes``."""
    random = generator("benchmark", "codes")
    factors = torch.cartesian_prod(*map(torch.arange, FACTOR_SIZES))
    mixing = torch.randn(len(FACTOR_SIZES), LATENTS, generator=random)
    codes = factors.float() @ mixing + 0.1 * torch.randn(len(factors), LATENTS, generator=random)
    table = FactorTable(codes, factors)
    train, test = table.points(TRAIN, random), table.points(TEST, random)
    timed("mig", lambda: mig(train))
    timed("dci (three scores)", lambda: boosted_importance(train, test))
    timed("sap", lambda: sap(train, test))
    timed("factor_vae_score", lambda: factor_vae_score(table, TRAIN, TEST, BATCH, random))
    timed("beta_vae_score", lambda: beta_vae_score(table, TRAIN, TEST, BATCH, random))


def main() -> None:
    """Print a line for each metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=10_000, help="images of each side")
    parser.add_argument("--dim", type=int, default=2048, help="features of an image")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.num} images, {arguments.dim} features, {arguments.threads} threads: seconds")
    generation(arguments.num, arguments.dim)
    print(
        f"disentanglement, {TRAIN} points to fit on and {TEST} to test on, "
        f"{LATENTS} latents: seconds"
    )
    timed("all five", disentanglement)


if __name__ == "__main__":
    main()
