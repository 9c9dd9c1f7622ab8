"""FactorVAE score (Kim & Mnih 2018, section 4)."""

from __future__ import annotations

import numpy as np
import torch

from src.metric.factor_table import FactorTable, Floats, Ints, in_chunks

SMALLEST_SCALE = 0.05  # standard deviation over the images, where the prior has 1


def factor_vae_score(
    table: FactorTable, num_train: int, num_eval: int, batch_size: int, generator: torch.Generator
) -> float:
    """FactorVAE score, in [0, 1] (Kim & Mnih 2018, section 4).

    Accuracy of predicting which factor a batch shares from the latent that varies least in it.
    Variances in a batch are relative to those over ``num_train`` points; each latent stands for the
    factor that most of its training votes were for. Latents with a standard deviation below 0.05
    have no vote: disentanglement_lib's "threshold 0.05", often quoted as a variance, is compared
    with the root. Raises ValueError where none is left.
    """
    variance = table.points(num_train, generator).codes.var(axis=0, ddof=1)
    active = np.flatnonzero(np.sqrt(variance) >= SMALLEST_SCALE)
    if not len(active):
        problem = f"all latents have a standard deviation below {SMALLEST_SCALE}"
        raise ValueError(f"{problem}, so none can vote")
    codes = table.codes[:, active]
    variance = variance[active]

    def votes(num: int) -> Ints:
        factor, rows = table.shared(num, batch_size, generator)
        local = in_chunks(lambda batch: codes[batch].var(axis=1, ddof=1), rows)
        return count_votes(factor, local / variance, table.factors.shape[1])

    return majority_accuracy(votes(num_train), votes(num_eval))


def count_votes(factor: Ints, variance: Floats, num_factors: int) -> Ints:
    """How often each latent varied least in batches of each factor, (F, L).

    factor: (num,); variance: (num, L).
    """
    votes = np.zeros((num_factors, variance.shape[1]), dtype=np.int64)
    np.add.at(votes, (factor, variance.argmin(axis=1)), 1)
    return votes


def majority_accuracy(train: Ints, test: Ints) -> float:
    """Fraction of test votes for the factor with most training votes of their latent; (F, L)."""
    guess = train.argmax(axis=0)
    return float(test[guess, np.arange(test.shape[1])].sum() / test.sum())
