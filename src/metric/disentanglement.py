"""Five disentanglement metrics by the protocol of disentanglement_lib (Locatello et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from src.errors import first_line, require
from src.metric.base import Measurement, binomial_error, share_error
from src.metric.beta_vae import beta_vae_score
from src.metric.dci import boosted_importance, completeness, disentanglement
from src.metric.factor_table import FactorTable, Points
from src.metric.factor_vae import factor_vae_score
from src.metric.gradient_boosting import NUM_BINS
from src.metric.mig import mig
from src.metric.sap import sap, squared_correlation_sap, standardised
from src.noise import generator

Measurements = dict[str, Measurement]


class Disentanglement:
    """MIG, DCI, SAP, FactorVAE and BetaVAE score of codes whose ground-truth factors are known.

    Points are drawn with replacement from the table, so in a small one the classifiers are tested
    on images that they were fitted on. Errors are those of the test points alone; training seeds
    move scores far more.

    Arguments:
        num_train: points (MIG, DCI, SAP) or batches (FactorVAE, BetaVAE) to fit on.
        num_eval: to test on.
        batch_size: images or pairs in a batch.
        seed: of the draws.
    """

    names: Sequence[str] = (
        "mig",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "sap",
        "factor_vae_score",
        "beta_vae_score",
    )

    def __init__(
        self, num_train: int = 10_000, num_eval: int = 5_000, batch_size: int = 64, seed: int = 0
    ) -> None:
        require(num_train >= 100, "num_train", num_train, "must be 100 or more")
        require(num_eval >= 1, "num_eval", num_eval, "must be 1 or more")
        require(batch_size >= 2, "batch_size", batch_size, "must be 2 or more, for a variance")
        self.num_train = num_train
        self.num_eval = num_eval
        self.batch_size = batch_size
        self.seed = seed

    def __call__(self, codes: Tensor, factors: Tensor) -> Measurements:
        """Measure codes (N, L), such as posterior means, with factors (N, F) long.

        Where there is no score, a null with its reason.
        """
        try:
            table = FactorTable(codes, factors)
        except ValueError as error:
            return _without_value(self.names, error)
        random = generator("disentanglement", "points", self.seed)
        train = table.points(self.num_train, random)
        test = table.points(self.num_eval, random)
        names = self.names
        measured = _attempt(names[:1], lambda: (Measurement(mig(train)),))
        measured |= _attempt(names[1:4], lambda: _dci(train, test))
        measured |= _attempt(names[4:5], lambda: (_sap(train, test),))
        measured |= _attempt(
            names[5:6], lambda: (self._accuracy(factor_vae_score, "factor_vae_score", table),)
        )
        measured |= _attempt(
            names[6:], lambda: (self._accuracy(beta_vae_score, "beta_vae_score", table),)
        )
        context = {
            "protocol": "disentanglement_lib",
            "num_train": self.num_train,
            "num_eval": self.num_eval,
            "seed": self.seed,
            "n_images": len(codes),
            "num_latents": codes.shape[1],
            "collapsed_latents": int((table.codes == 0).all(axis=0).sum()),
            "factor_sizes": (table.factors.max(axis=0) + 1).tolist(),
        }
        return {name: measurement.within(**context) for name, measurement in measured.items()}

    def _accuracy(self, score: Callable[..., float], key: str, table: FactorTable) -> Measurement:
        """key: of the noise, a constant that outlives the names in the code."""
        random = generator("disentanglement", key, self.seed)
        accuracy = score(table, self.num_train, self.num_eval, self.batch_size, random)
        error = binomial_error(accuracy, self.num_eval)
        context = {"batch_size": self.batch_size}
        return Measurement(accuracy, error, "standard error", context=context)


def _dci(train: Points, test: Points) -> tuple[Measurement, ...]:
    importance, correct = boosted_importance(train, test)
    right = correct.mean(axis=1)  # of each point, as its factors are not independent
    error = share_error(float(right.var()), len(right))
    context = {"importances": f"gradient boosting on {NUM_BINS} bins"}
    return (
        Measurement(disentanglement(importance), context=context),
        Measurement(completeness(importance), context=context),
        Measurement(float(right.mean()), error, "standard error", context=context),
    )


def _sap(train: Points, test: Points) -> Measurement:
    """Its context: the score of standardised factors as codes, and SAP for continuous factors."""
    codes = standardised(np.concatenate([train.factors, test.factors]))
    num = len(train.factors)
    perfect = sap(Points(codes[:num], train.factors), Points(codes[num:], test.factors))
    context = {"sap_of_perfect_code": perfect, "sap_continuous": squared_correlation_sap(train)}
    return Measurement(sap(train, test), context=context)


def _attempt(names: Sequence[str], measure: Callable[[], Sequence[Measurement]]) -> Measurements:
    try:
        return dict(zip(names, measure(), strict=True))
    except ValueError as error:
        return _without_value(names, error)


def _without_value(names: Sequence[str], error: ValueError) -> Measurements:
    return {name: Measurement(None, reason=first_line(error)) for name in names}
