"""Inception score (Salimans et al. 2016): how sure a classifier is, and of how many classes."""

from __future__ import annotations

import torch
from torch import Tensor

from src.errors import first_line, require
from src.metric.base import Measurement, Samples, binomial_error
from src.noise import generator


class InceptionScore:
    """Inception score with the features' own classifier (Salimans et al. 2016), and its confidence.

    inception_score: 1 (all images look alike to the classifier) to the number of classes (sure of
        every image, classes equally frequent), larger is better; it ignores the variety within a
        class, and compares at equal ``num_splits`` and numbers of images only. The images are
        shuffled before they are split, as they may be sorted by class.
    confident: fraction of the images whose most probable class has more than ``threshold``.
    """

    names = ("inception_score", "confident")

    def __init__(self, num_splits: int = 10, threshold: float = 0.9) -> None:
        require(num_splits >= 1, "num_splits", num_splits, "must be 1 or more")
        require(0 <= threshold < 1, "threshold", threshold, "must be in [0, 1)")
        self.num_splits = num_splits
        self.threshold = threshold

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure the probabilities of the generated images."""
        probabilities = samples.probabilities
        if probabilities is None:
            missing = Measurement(None, reason="the features are not a classifier's", applies=False)
            return dict.fromkeys(self.names, missing)
        num = len(probabilities)
        score = self._score(probabilities)
        confident = self._confident(probabilities)
        return {
            "inception_score": score.within(n_fake=num),
            "confident": confident.within(n_fake=num),
        }

    def _confident(self, probabilities: Tensor) -> Measurement:
        is_confident = probabilities.amax(dim=1) > self.threshold
        fraction = float(is_confident.to(torch.float64).mean())
        error = binomial_error(fraction, len(probabilities))
        context = {"threshold": self.threshold}
        return Measurement(fraction, error, "binomial standard error", context=context)

    def _score(self, probabilities: Tensor) -> Measurement:
        context = {"num_splits": self.num_splits}
        order = torch.randperm(len(probabilities), generator=generator("inception_score"))
        shuffled = probabilities[order.to(probabilities.device)]
        try:
            score, sd = inception_score(shuffled, self.num_splits)
        except ValueError as error:
            return Measurement(None, reason=first_line(error), context=context)
        if self.num_splits == 1:
            return Measurement(score, context=context)
        return Measurement(score, sd, f"sd over {self.num_splits} splits", context=context)


def inception_score(probabilities: Tensor, num_splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)), KL in nats (Salimans et al. 2016, section 4).

    Its mean and sd over splits of neighbouring rows. probabilities: (n, num_classes), rows sum to
    1; computed in float64. Raises ValueError for n < num_splits.
    """
    n = len(probabilities)
    if n < num_splits:
        raise ValueError(f"{num_splits} splits need as many images, there are {n}")
    scores = []
    for part in torch.tensor_split(probabilities.to(torch.float64), num_splits):
        marginal = part.mean(dim=0)
        divergence = torch.xlogy(part, part) - torch.xlogy(part, marginal)  # 0 log 0 = 0
        scores.append(divergence.sum(dim=1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
