"""BetaVAE score (Higgins et al. 2017, section 3)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from src.metric.factor_table import FactorTable, Floats, Ints, in_chunks


def beta_vae_score(
    table: FactorTable, num_train: int, num_eval: int, batch_size: int, generator: torch.Generator
) -> float:
    """BetaVAE score, in [0, 1] (Higgins et al. 2017, section 3).

    Accuracy of predicting which factor pairs of images share from the mean of |z_1 - z_2| over a
    batch. The classifier is scikit-learn's multinomial logistic regression with its default
    penalty, as in disentanglement_lib but run until it converges.
    """
    classifier = LogisticRegression(max_iter=1000, random_state=0)
    classifier.fit(*pair_differences(table, num_train, batch_size, generator))
    return float(classifier.score(*pair_differences(table, num_eval, batch_size, generator)))


def pair_differences(
    table: FactorTable, num: int, batch_size: int, generator: torch.Generator
) -> tuple[Floats, Ints]:
    """Mean |z_1 - z_2| of ``num`` batches of pairs, (num, L), and the factor they share, (num,)."""
    factor, first, second = table.pairs(num, batch_size, generator)
    codes = table.codes

    def difference(a: Ints, b: Ints) -> Floats:
        return np.abs(codes[a] - codes[b]).mean(axis=1)

    return in_chunks(difference, first, second), factor
