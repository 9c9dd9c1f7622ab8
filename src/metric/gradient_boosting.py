"""Gradient boosting of small trees on binned features (Friedman 2001, algorithm 6), for the importances of DCI.

disentanglement_lib takes scikit-learn's GradientBoostingClassifier, which needs minutes for factors of many levels.
These are its trees with thresholds restricted to NUM_BINS quantiles: the same ones where no latent has more values;
else D, C and I differ by about 0.005, and by 0.03 where most of a code is noise. scikit-learn's own histogram version
splits by another criterion and knows no importances.
"""

from __future__ import annotations

import numpy as np

from src.metric.factor_table import Floats, Ints

NUM_ROUNDS, DEPTH, LEARNING_RATE = (
    100,
    3,
    0.1,
)  # defaults of GradientBoostingClassifier, so disentanglement_lib's
NUM_BINS = 128


class BinnedCodes:
    """Training codes and, behind them, test codes (n, L) as bins, cut where the training codes' quantiles are."""

    def __init__(self, train: Floats, test: Floats) -> None:
        edges = [_edges(code) for code in train.T]
        codes = np.concatenate([train, test])
        self.bins = np.stack(
            [np.searchsorted(edge, code) for edge, code in zip(edges, codes.T, strict=True)], axis=1
        )
        self.num_train, self.num_latents = train.shape
        self._cell = self.bins[: self.num_train] + NUM_BINS * np.arange(self.num_latents)

    def histogram(self, node: Ints, num_nodes: int, weight: Floats | None = None) -> Floats:
        """Sums of ``weight`` (num_train,), or counts, of the training codes: (num_nodes, L, NUM_BINS)."""
        shape = num_nodes, self.num_latents, NUM_BINS
        cell = self._cell + (node[: self.num_train] * (self.num_latents * NUM_BINS))[:, None]
        weights = None if weight is None else np.repeat(weight, self.num_latents)
        return np.bincount(cell.ravel(), weights, minlength=int(np.prod(shape))).reshape(shape)


def boost(codes: BinnedCodes, target: Ints, num_classes: int) -> tuple[Floats, Floats]:
    """Fit trees to the classes of the training codes: importance (L,) >= 0 and logits (n, num_classes) of all codes.

    target: (num_train,), each class at least once. The importance of a latent is the drop of the residuals' squared
    error by all splits on it.
    """
    own = target[:, None] == np.arange(num_classes)
    logits = np.log(np.tile(own.mean(axis=0), (len(codes.bins), 1)))
    trained = range(1, 2) if num_classes == 2 else range(num_classes)  # two classes share one tree
    rate = LEARNING_RATE * (1 if num_classes == 2 else 1 - 1 / num_classes)
    importance = np.zeros(codes.num_latents)
    for _ in range(NUM_ROUNDS):
        probability = np.exp(logits[: len(own)] - logits[: len(own)].max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        for k in trained:
            residual = own[:, k] - probability[:, k]
            leaf, drop = _grow(codes, residual)
            logits[:, k] += rate * _newton_step(leaf[: len(own)], residual, probability[:, k])[leaf]
            importance += drop
    return importance, logits


def _grow(codes: BinnedCodes, residual: Floats) -> tuple[Ints, Floats]:
    """A regression tree of the residuals: the leaf 0 .. 2^DEPTH - 1 of all codes, drop of squared error (L,)."""
    node = np.zeros(len(codes.bins), dtype=np.int64)
    importance = np.zeros(codes.num_latents)
    for depth in range(DEPTH):
        total = codes.histogram(node, 2**depth, residual).cumsum(axis=2)
        count = codes.histogram(node, 2**depth).cumsum(axis=2)
        whole, size = total[..., -1:], count[..., -1:]
        drop = (
            _explained(total, count)
            + _explained(whole - total, size - count)
            - _explained(whole, size)
        )
        drop[(count == 0) | (count == size)] = 0  # one side is empty: no split
        best = drop.reshape(len(drop), -1).argmax(axis=1)
        latent, threshold = np.divmod(best, NUM_BINS)
        importance += np.bincount(
            latent, drop.reshape(len(drop), -1).max(axis=1), minlength=codes.num_latents
        )
        node = 2 * node + (codes.bins[np.arange(len(node)), latent[node]] > threshold[node])
    return node, importance


def _explained(total: Floats, count: Floats) -> Floats:
    return total**2 / np.maximum(count, 1)


def _newton_step(leaf: Ints, residual: Floats, probability: Floats) -> Floats:
    """Step of each leaf: sum of residuals over sum of p (1 - p); 0 where nothing is left to learn."""
    step = np.bincount(leaf, residual, minlength=2**DEPTH)
    curvature = np.bincount(leaf, probability * (1 - probability), minlength=2**DEPTH)
    return np.divide(step, curvature, out=np.zeros_like(step), where=curvature > 1e-150)


def _edges(code: Floats) -> Floats:
    """Thresholds half way between neighbouring values, or between NUM_BINS quantiles of these where there are more."""
    values = np.unique(code)
    if len(values) > NUM_BINS:
        values = np.unique(np.quantile(values, np.linspace(0, 1, NUM_BINS)))
    return (values[1:] + values[:-1]) / 2
