"""Nearest neighbours in feature space: fidelity, diversity and memorisation, apart.

Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), and the
fraction of memorised samples. Distances are as exact as float32 features: below 1e-6 of a
feature's norm they are 0, and equal ones are ties.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.errors import require
from src.metric.base import Measurement, Samples, binomial_error, evenly_spaced, row_blocks

# Of squared distances: far above the rounding of float64, below the precision of float32 features.
SLACK = 1e-12

Estimate = tuple[float, float | None]  # a number and its error


class Neighbours:
    """Precision, recall, density and coverage: see ``neighbour_scores``.

    Errors are standard errors over the generated images given the real ones. Recall and coverage
    have none: a binomial one, as if real images were covered independently, is up to two times too
    small. Context ``of_real``: what unseen real images would have on average, where that has a
    closed form (Naeem et al. 2020, section 3).

    k: balls reach to the k-th nearest neighbour of the same set. max_images: of each side, the
    first generated and evenly spaced real ones; numbers compare at equal counts only. Raises
    ValueError where a side has no more than k images.
    """

    names = ("precision", "recall", "density", "coverage")

    def __init__(self, k: int = 5, max_images: int = 10_000) -> None:
        require(k >= 1, "k", k, "must be 1 or more")
        require(max_images > k, "max_images", max_images, f"must be more than k={k}")
        self.k = k
        self.max_images = max_images

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure all four."""
        real = evenly_spaced(samples.real.features, self.max_images)
        fake = samples.fake[: self.max_images]
        n, m = len(real), len(fake)
        # Probability that the k nearest of all others are real.
        missed = math.prod((n - i) / (n + m - i) for i in range(1, self.k + 1))
        of_real = {"density": {"of_real": 1.0}, "coverage": {"of_real": 1 - missed}}
        found = {}
        for name, (value, error) in neighbour_scores(real, fake, self.k).items():
            context = {"n_real": n, "n_fake": m, "k": self.k} | of_real.get(name, {})
            kind = "" if error is None else "standard error over generated images"
            found[name] = Measurement(value, error, kind, context=context)
        return found


class Memorised:
    """The fraction of generated images that are nearer to a training image than unseen ones are.

    That is, nearer than all but ``quantile`` of the held-out images. A model that samples p_data
    has ``quantile`` itself (context ``of_real``, rounded down to a multiple of 1 / (m + 1) for m
    held-out images), one that copies training images up to 1; images that are more typical than
    real ones also raise it. All training images are searched, however many. Raises ValueError
    without held-out images or with fewer than 1 / quantile - 1.
    """

    names = ("memorised",)

    def __init__(self, quantile: float = 0.05) -> None:
        require(0 < quantile < 1, "quantile", quantile, "must be between 0 and 1")
        self.quantile = quantile

    def __call__(self, samples: Samples) -> dict[str, Measurement]:
        """Measure against the held-out images."""
        if samples.held_out is None:
            raise ValueError("there are no held-out images to compare with")
        train = samples.real.features
        held_out = samples.held_out
        value, error = memorised_share(train, held_out, samples.fake, self.quantile)
        sizes = {"n_real": len(train), "n_unseen": len(held_out), "n_fake": len(samples.fake)}
        of_real = _rank(self.quantile, len(held_out)) / (len(held_out) + 1)
        context = {**sizes, "quantile": self.quantile, "of_real": of_real}
        return {"memorised": Measurement(value, error, "standard error", context=context)}


def neighbour_scores(real: Tensor, fake: Tensor, k: int) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of generated features (m, d) against real (n, d).

    A ball around each image reaches to its k-th nearest neighbour of the same set, itself excluded,
    border included.

    precision: fraction of fakes in any real ball (Kynkäänniemi et al. 2019, eq. 1-2).
    recall: fraction of real images in any fake's ball (likewise).
    density: number of real balls that a fake is in, over k, mean over fakes, may exceed 1 (Naeem et
        al. 2020, section 3).
    coverage: fraction of real balls with a fake in them (likewise).

    Precision and density come with standard errors over fakes, density unless all of them are in
    equally many balls, the others with None. Raises ValueError for n or m <= k.
    """
    if min(len(real), len(fake)) <= k:
        needed = f"k={k} neighbours need {k + 1} or more images"
        raise ValueError(f"{needed}, there are {len(real)} and {len(fake)}")
    mean = _mean(real)
    real = _centred(real, mean)
    fake = _centred(fake, mean)
    num_balls, recalled, covered = _memberships(real, fake, k)
    precision = float((num_balls > 0).double().mean())
    density = num_balls / k
    return {
        "precision": (precision, binomial_error(precision, len(fake))),
        "recall": (float(recalled.double().mean()), None),
        "density": (float(density.mean()), float(density.std()) / len(fake) ** 0.5 or None),
        "coverage": (float(covered.double().mean()), None),
    }


def _memberships(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which fakes lie in the balls of real images, and the reverse; both centred.

    Returns the number of real balls that each fake is in, (m,) float64, and for each real image
    whether it is in any fake's ball and whether its ball holds any fake, (n,) bool.
    """
    real_radius = _radius(real, k)
    fake_radius = _radius(fake, k)
    num_balls = real.new_zeros(len(fake))
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for block in row_blocks(len(fake), len(real)):
        squared = _squared_distances(fake[block], real)
        inside = squared <= real_radius
        num_balls[block] = inside.sum(dim=1).to(torch.float64)
        covered |= inside.any(dim=0)
        recalled |= (squared <= fake_radius[block, None]).any(dim=0)
    return num_balls, recalled, covered


def memorised_share(
    train: Tensor, held_out: Tensor, fake: Tensor, quantile: float = 0.05
) -> tuple[float, float]:
    """Fraction of fakes nearer to a training image than all but ``quantile`` of held-out images.

    Features (num, d), in blocks of train; returns the fraction and its standard error. The
    threshold is the held-out distance of rank j = floor(quantile (m + 1)): a further image of their
    distribution is below it with probability j / (m + 1), whatever the distribution (it is a
    conformal p-value), and a tie is not below. The standard error adds to that of a fraction how
    much it moves with the threshold, by one standard deviation of its rank. Raises ValueError for
    j < 1.
    """
    m = len(held_out)
    rank = _rank(quantile, m)
    if rank < 1:
        needed = f"{math.ceil(1 / quantile) - 1} held-out images"
        raise ValueError(f"a quantile of {quantile} needs {needed}, there are {m}")
    mean = _mean(train)
    thresholds = _nearest(held_out, train, mean).sort().values
    distances = _nearest(fake, train, mean)

    def fraction(rank: int) -> float:
        if rank < 1:
            return 0.0
        return float((distances < thresholds[min(rank, m) - 1]).double().mean())

    step = max(1, round((m * quantile * (1 - quantile)) ** 0.5))
    from_threshold = (fraction(rank + step) - fraction(rank - step)) / 2
    memorised = fraction(rank)
    return memorised, math.hypot(binomial_error(memorised, len(fake)), from_threshold)


def _rank(quantile: float, num: int) -> int:
    return math.floor(round(quantile * (num + 1), 9))  # 0.29 * 100 is 28.999... in floats


def _radius(x: Tensor, k: int) -> Tensor:
    """Squared distance (n,) to the k-th nearest other one.

    Enlarged so that rounding does not undo a tie.
    """
    parts = []
    for block in row_blocks(len(x), len(x)):
        parts.append(_squared_distances(x[block], x).kthvalue(k + 1).values)
    squared = torch.cat(parts)
    return squared + SLACK * (squared + x.square().sum(dim=1))


def _nearest(x: Tensor, train: Tensor, mean: Tensor) -> Tensor:
    """Squared distance (n,) of x (n, d) to the nearest of train; 0 where it is rounding alone."""
    x = _centred(x, mean)
    nearest = x.new_full((len(x),), math.inf)
    for block in row_blocks(len(train), len(x)):
        squared = _squared_distances(x, _centred(train[block], mean))
        nearest = torch.minimum(nearest, squared.amin(dim=1))
    return nearest.where(nearest > SLACK * x.square().sum(dim=1), 0)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=0, dtype=torch.float64)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """In float64, near the origin: products cancel where norms are large against distances."""
    return x.to(torch.float64) - mean


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) of (n, d) and (m, d), by products.

    The sum of squared differences takes ten times as long.
    """
    squared = torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(dim=1, keepdim=True))
