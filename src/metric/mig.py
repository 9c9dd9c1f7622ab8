"""Mutual information gap (Chen et al. 2018, section 4), estimated as in disentanglement_lib."""

from __future__ import annotations

import numpy as np

from src.metric.factor_table import Floats, Ints, Points


def mig(points: Points, num_bins: int = 20) -> float:
    """MIG in [0, 1]: over factors v, the mean of (I(z_1; v) - I(z_2; v)) / H(v) (Chen et al. 2018).

    z_1 and z_2 are the two latents of most information about v. Codes are discretised by
    ``histogram``, so a factor of more levels than bins keeps even a perfect code below 1.
    """
    bins = histogram(points.codes, num_bins)
    gaps = []
    for factor in points.factors.T:
        information = [mutual_information(code, factor) for code in bins.T]
        second, best = np.sort(information)[-2:]
        gaps.append((best - second) / mutual_information(factor, factor))
    return float(np.mean(gaps))


def histogram(codes: Floats, num_bins: int = 20) -> Ints:
    """Bins 0 .. num_bins - 1 of codes (n, L), of equal width.

    They span the smallest to the largest value of each latent.
    """
    bins = []
    for code in codes.T:
        edges = np.histogram_bin_edges(code, num_bins)
        bins.append(np.digitize(code, edges[1:-1]))
    return np.stack(bins, axis=1)


def mutual_information(a: Ints, b: Ints) -> float:
    """I(a; b) in nats of the joint histogram of two arrays (n,) of numbers 0, 1, ...

    I(a; a) is the entropy of a.
    """
    shape = int(a.max()) + 1, int(b.max()) + 1
    cell = np.ravel_multi_index((a, b), shape)
    count = np.bincount(cell, minlength=shape[0] * shape[1])
    joint = count.reshape(shape) / len(a)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    occurs = joint > 0
    return float((joint[occurs] * np.log(joint[occurs] / independent[occurs])).sum())
