"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2)."""

from __future__ import annotations

import numpy as np

from src.metric.factor_table import Floats, Points
from src.metric.gradient_boosting import BinnedCodes, boost


def disentanglement(importance: Floats) -> float:
    """D in [0, 1], 1 where each latent matters to one factor only (Eastwood & Williams 2018).

    importance: (L, F) >= 0, not all 0. D_i = 1 - entropy over factors (base F) of row i; latents
    are weighted by their fraction of all importance.
    """
    entropy = _entropy(importance) / np.log(importance.shape[1])
    return float((importance.sum(axis=1) * (1 - entropy)).sum() / importance.sum())


def completeness(importance: Floats) -> float:
    """C in [0, 1]: 1 where one latent alone matters to each factor; importance: (L, F).

    D of the transpose.
    """
    return disentanglement(importance.T)


def boosted_importance(train: Points, test: Points) -> tuple[Floats, Floats]:
    """Importance (L, F) of latents to factors, and what is predicted right on test, (n, F).

    Columns of the importance sum to 1; predictions are 0 (wrong) or 1. From boosted trees for each
    factor, as in disentanglement_lib (Eastwood & Williams took a lasso or a random forest). Raises
    ValueError where no tree could be split.
    """
    codes = BinnedCodes(train.codes, test.codes)
    importance, correct = [], []
    for known, sought in zip(train.factors.T, test.factors.T, strict=True):
        classes, target = np.unique(known, return_inverse=True)
        drop, logits = boost(codes, target, len(classes))
        importance.append(drop)
        correct.append(classes[logits[len(known) :].argmax(axis=1)] == sought)
    drops = np.stack(importance, axis=1)
    if not drops.any(axis=0).all():
        raise ValueError("no latent helps to predict a factor: its trees have no split")
    return drops / drops.sum(axis=0), np.stack(correct, axis=1).astype(np.float64)


def _entropy(weights: Floats) -> Floats:
    """Entropy in nats of each row, normalised; a row of zeros counts as uniform."""
    weights = weights + 1e-11  # as disentanglement_lib, for 0 log 0
    fraction = weights / weights.sum(axis=1, keepdims=True)
    return -(fraction * np.log(fraction)).sum(axis=1)
