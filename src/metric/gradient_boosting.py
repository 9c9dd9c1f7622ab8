"""Gradient boosting of small trees on binned features (Friedman 2001, algorithm 6), for DCI.

disentanglement_lib takes scikit-learn's GradientBoostingClassifier, which needs minutes for factors
of many levels. These are its trees with thresholds restricted to NUM_BINS quantiles: the same ones
where no latent has more values; else D, C and I differ by about 0.005, and by 0.03 where most of a
code is noise. scikit-learn's own histogram version splits by another criterion and gives no
importances.
"""

from __future__ import annotations

import numpy as np

from src.metric.factor_table import Floats, Ints

# Defaults of GradientBoostingClassifier, so disentanglement_lib's.
NUM_ROUNDS = 100
DEPTH = 3
LEARNING_RATE = 0.1

NUM_BINS = 128


class BinnedCodes:
    """Training codes and, behind them, test codes (n, L) as bins, cut at the training quantiles."""

    def __init__(self, train: Floats, test: Floats) -> None:
        codes = np.concatenate([train, test])
        pairs = zip(train.T, codes.T, strict=True)
        bins = [np.searchsorted(_edges(known), code) for known, code in pairs]
        self.bins = np.stack(bins, axis=1)
        self.num_train, self.num_latents = train.shape
        self._cell = self.bins[: self.num_train] + NUM_BINS * np.arange(self.num_latents)

    def histogram(self, node: Ints, num_nodes: int, weight: Floats | None = None) -> Floats:
        """Sums of ``weight`` (num_train,), or counts, by bin: (num_nodes, L, NUM_BINS).

        Of the training codes.
        """
        shape = num_nodes, self.num_latents, NUM_BINS
        offset = node[: self.num_train] * (self.num_latents * NUM_BINS)
        cell = self._cell + offset[:, None]
        weights = None if weight is None else np.repeat(weight, self.num_latents)
        sums = np.bincount(cell.ravel(), weights, minlength=int(np.prod(shape)))
        return sums.reshape(shape)


def boost(codes: BinnedCodes, target: Ints, num_classes: int) -> tuple[Floats, Floats]:
    """Fit trees to the classes of the training codes (Friedman 2001, algorithm 6).

    Returns the importance (L,) >= 0 and the logits (n, num_classes) of all codes. target:
    (num_train,), each class at least once. The importance of a latent is the drop of the residuals'
    squared error by all splits on it.
    """
    own = target[:, None] == np.arange(num_classes)
    logits = np.log(np.tile(own.mean(axis=0), (len(codes.bins), 1)))
    trained = range(num_classes)
    rate = LEARNING_RATE * (1 - 1 / num_classes)
    if num_classes == 2:  # two classes share one tree
        trained = range(1, 2)
        rate = LEARNING_RATE
    importance = np.zeros(codes.num_latents)
    for _ in range(NUM_ROUNDS):
        known = logits[: len(own)]
        probability = np.exp(known - known.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        for k in trained:
            residual = own[:, k] - probability[:, k]
            leaf, drop = _grow(codes, residual)
            step = _newton_step(leaf[: len(own)], residual, probability[:, k])
            logits[:, k] += rate * step[leaf]
            importance += drop
    return importance, logits


def _grow(codes: BinnedCodes, residual: Floats) -> tuple[Ints, Floats]:
    """A regression tree of the residuals.

    Returns the leaf 0 .. 2^DEPTH - 1 of all codes, and the drop of the squared error by splits on
    each latent, (L,).
    """
    node = np.zeros(len(codes.bins), dtype=np.int64)
    importance = np.zeros(codes.num_latents)
    for depth in range(DEPTH):
        total = codes.histogram(node, 2**depth, residual).cumsum(axis=2)
        count = codes.histogram(node, 2**depth).cumsum(axis=2)
        whole = total[..., -1:]
        size = count[..., -1:]
        by_split = _explained(total, count) + _explained(whole - total, size - count)
        drop = by_split - _explained(whole, size)
        drop[(count == 0) | (count == size)] = 0  # one side is empty: no split
        drop = drop.reshape(len(drop), -1)
        latent, threshold = np.divmod(drop.argmax(axis=1), NUM_BINS)
        importance += np.bincount(latent, drop.max(axis=1), minlength=codes.num_latents)
        bins = codes.bins[np.arange(len(node)), latent[node]]
        node = 2 * node + (bins > threshold[node])
    return node, importance


def _explained(total: Floats, count: Floats) -> Floats:
    return total**2 / np.maximum(count, 1)


def _newton_step(leaf: Ints, residual: Floats, probability: Floats) -> Floats:
    """Step of each leaf: sum of residuals over sum of p (1 - p); 0 where p is 0 or 1 already."""
    step = np.bincount(leaf, residual, minlength=2**DEPTH)
    curvature = np.bincount(leaf, probability * (1 - probability), minlength=2**DEPTH)
    return np.divide(step, curvature, out=np.zeros_like(step), where=curvature > 1e-150)


def _edges(code: Floats) -> Floats:
    """Thresholds half way between neighbouring values, or between NUM_BINS quantiles of them."""
    values = np.unique(code)
    if len(values) > NUM_BINS:
        values = np.unique(np.quantile(values, np.linspace(0, 1, NUM_BINS)))
    return (values[1:] + values[:-1]) / 2
