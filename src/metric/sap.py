"""Separated attribute predictability (Kumar et al. 2018, section 3)."""

from __future__ import annotations

import numpy as np
from sklearn.svm import LinearSVC

from src.metric.factor_table import Floats, Ints, Points


def sap(train: Points, test: Points) -> float:
    """SAP score: gap of the two latents whose linear SVM predicts a factor best, mean over factors.

    The form of disentanglement_lib for discrete factors. It stays well below 1: one-versus-rest
    thresholds on a single latent separate little more than its two ends, and a latent without any
    information still predicts at chance. Factors of (3, 4, 8, 8, 8) levels reach 0.45 as their own
    codes. As C is fixed, it also depends on the scale of the codes.
    """
    return top_two_gap(svm_accuracy(train, test))


def squared_correlation_sap(points: Points) -> float:
    """SAP score in [0, 1] for continuous factors: the gap of squared correlations.

    Kumar et al. 2018, section 3.
    """
    codes = standardised(points.codes)
    factors = standardised(points.factors)
    return top_two_gap((codes.T @ factors / len(codes)) ** 2)


def top_two_gap(scores: Floats) -> float:
    """Mean over factors of best minus second best score; scores: (L, F)."""
    second, best = np.sort(scores, axis=0)[-2:]
    return float((best - second).mean())


def svm_accuracy(train: Points, test: Points) -> Floats:
    """Accuracy (L, F) on test of a linear SVM that predicts each factor from each latent alone."""
    scores = np.zeros((train.codes.shape[1], train.factors.shape[1]))
    for i, j in np.ndindex(*scores.shape):
        svm = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
        svm.fit(train.codes[:, [i]], train.factors[:, j])
        scores[i, j] = svm.score(test.codes[:, [i]], test.factors[:, j])
    return scores


def standardised(values: Floats | Ints) -> Floats:
    """Columns of mean 0 and variance 1; a constant one becomes 0."""
    scale = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(scale > 0, scale, 1)
