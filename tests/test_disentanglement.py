"""Disentanglement metrics: perfect, useless and rotated codes, formulas, scikit-learn."""

import re

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from src.errors import ConfigError
from src.metric.beta_vae import pair_differences
from src.metric.dci import boosted_importance, completeness, disentanglement
from src.metric.disentanglement import Disentanglement
from src.metric.factor_table import FactorTable
from src.metric.factor_vae import SMALLEST_SCALE, count_votes, majority_accuracy
from src.metric.mig import histogram, mig, mutual_information
from src.metric.sap import sap, squared_correlation_sap, svm_accuracy, top_two_gap
from src.noise import generator, randn

SIZES = (3, 4, 5, 2)
GRID = torch.cartesian_prod(*(torch.arange(size) for size in SIZES)).repeat(10, 1)  # 1200 images
PERFECT = (GRID - GRID.double().mean(0)) / GRID.double().std(0)
NUM_FACTORS = len(SIZES)


def noise(num_latents, key="noise"):
    return randn(
        (len(GRID), num_latents), generator("test_disentanglement", key), dtype=torch.float64
    )


def rotated():
    rotation, _ = torch.linalg.qr(
        randn((NUM_FACTORS, NUM_FACTORS), generator("rotation"), dtype=torch.float64)
    )
    return PERFECT @ rotation


def scores(codes, factors=GRID, **settings):
    return Disentanglement(**({"num_train": 2000, "num_eval": 1000, "batch_size": 16} | settings))(
        codes, factors
    )


def values(codes, factors=GRID):
    return {name: measured.value for name, measured in scores(codes, factors).items()}


def drawn(codes, num=2000, key="points"):
    return FactorTable(codes, GRID).points(num, generator(key))


IDENTITIES = {
    "standardised": PERFECT,
    "permuted, scaled and turned round": PERFECT[:, [2, 0, 3, 1]]
    * torch.tensor([-3.0, 0.5, 1.0, -1.0])
    + 2,
    "beside collapsed latents": torch.cat([PERFECT, 5 + 1e-8 * noise(3)], 1),
}


@pytest.mark.parametrize("codes", IDENTITIES.values(), ids=IDENTITIES)
def test_a_perfect_code_scores_one(codes):
    result = scores(codes)
    for name in set(Disentanglement.names) - {"sap"}:
        assert result[name].value >= 0.99, name
    assert result["sap"].context["sap_continuous"] >= 0.99


def test_sap_of_a_perfect_code_is_limited_by_chance_and_by_thresholds():
    """Two levels: the best latent is right, any other half of the time; more: no line is enough."""
    codes = torch.cat([PERFECT[:, 3:], noise(1)], 1)
    factors = GRID[:, [3, 3]]
    assert scores(codes, factors)["sap"].value == pytest.approx(0.5, abs=0.05)
    perfect = scores(PERFECT)["sap"]
    assert 0.5 < perfect.value < 0.7
    assert perfect.context["sap_of_perfect_code"] == pytest.approx(perfect.value, abs=0.1)


def test_noise_scores_chance():
    result = values(noise(6))
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness"):
        assert result[name] <= 0.02, name
    assert result["factor_vae_score"] == pytest.approx(1 / NUM_FACTORS, abs=0.1)
    assert result["beta_vae_score"] == pytest.approx(1 / NUM_FACTORS, abs=0.1)


def test_a_rotation_hides_the_factors_from_single_latents_but_keeps_them():
    result = values(rotated())
    assert result["mig"] < 0.3
    assert result["dci_disentanglement"] < 0.6
    assert result["dci_informativeness"] > 0.8


def test_a_latent_written_twice_closes_the_gaps_and_halves_no_disentanglement():
    result = values(torch.cat([PERFECT, PERFECT], 1))
    assert result["mig"] == pytest.approx(0, abs=1e-9)
    assert result["sap"] == pytest.approx(0, abs=1e-9)
    assert result["dci_disentanglement"] >= 0.99


def test_mig_against_scikit_learn():
    points = drawn(torch.cat([rotated(), noise(2)], 1))
    edges = [np.histogram(code, 20)[1][:-1] for code in points.codes.T]
    bins = [np.digitize(code, edge) for code, edge in zip(points.codes.T, edges, strict=True)]
    known = np.array(
        [[mutual_info_score(factor, code) for factor in points.factors.T] for code in bins]
    )
    entropy = [mutual_info_score(factor, factor) for factor in points.factors.T]
    known.sort(axis=0)
    assert mig(points) == pytest.approx(np.mean((known[-1] - known[-2]) / entropy), abs=1e-9)


def test_mutual_information_by_hand():
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert mutual_information(a, b) == pytest.approx(0)
    assert mutual_information(a, a) == pytest.approx(np.log(2))
    expected = np.log(4 / 3) / 2 + np.log(2 / 3) / 4 + np.log(2) / 4  # p(a, b) = 1/2, 1/4, 0, 1/4
    assert mutual_information(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(
        expected
    )
    assert histogram(np.array([[0.0], [0.49], [0.5], [0.99], [1.0]]), 2).ravel().tolist() == [
        0,
        0,
        1,
        1,
        1,
    ]


def test_dci_of_an_importance_matrix_by_hand():
    importance = np.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]])
    assert disentanglement(importance) == pytest.approx(1)
    # the second factor is spread over two of three latents: 1 - log 2 / log 3;
    # each column weighs half
    assert completeness(importance) == pytest.approx((1 + 1 - np.log(2) / np.log(3)) / 2)
    mixed = np.array([[0.5, 0.5], [0.5, 0.0], [0.0, 0.0], [0.0, 0.5]])
    # rows weigh 1/2, 1/4, 0, 1/4 and score 0, 1, any, 1
    assert disentanglement(mixed) == pytest.approx(0.5)
    assert completeness(mixed) == pytest.approx(0.5)
    assert disentanglement(np.ones((3, 4))) == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "depth", "tolerance"), [(10, 2, 1e-9), (100, 3, 0.02)])
def test_importances_are_those_of_gradient_boosting(monkeypatch, rounds, depth, tolerance):
    """disentanglement_lib's classifier as oracle.

    In small nodes it takes equally good splits in random order.
    """
    monkeypatch.setattr("src.metric.gradient_boosting.NUM_ROUNDS", rounds)
    monkeypatch.setattr("src.metric.gradient_boosting.DEPTH", depth)
    mixed = PERFECT @ (torch.eye(NUM_FACTORS, dtype=torch.float64) + 0.4)
    # < 128 values each
    codes = torch.cat([mixed + 0.5 * noise(NUM_FACTORS), noise(2, "more")], 1).mul(12).round()
    train, test = drawn(codes), drawn(codes, 500, "test")
    importance, correct = boosted_importance(train, test)
    models = [
        GradientBoostingClassifier(n_estimators=rounds, max_depth=depth, random_state=0)
        for _ in SIZES
    ]
    # test codes that fall between training values may go the other way
    for k, model in enumerate(models):
        model.fit(train.codes, train.factors[:, k])
        assert correct[:, k].mean() == pytest.approx(
            model.score(test.codes, test.factors[:, k]), abs=0.02
        )
    expected = np.stack([model.feature_importances_ for model in models], 1)
    np.testing.assert_allclose(importance, expected, rtol=0, atol=tolerance)
    assert disentanglement(importance) == pytest.approx(disentanglement(expected), abs=tolerance)


def test_sap_of_a_score_matrix_by_hand():
    matrix = np.array([[0.9, 0.5], [0.4, 0.45], [0.6, 0.2]])
    assert top_two_gap(matrix) == pytest.approx((0.3 + 0.05) / 2)
    train, test = drawn(rotated()), drawn(rotated(), key="test")
    accuracy = svm_accuracy(train, test)
    one = LinearSVC(C=0.01, class_weight="balanced").fit(train.codes[:, [2]], train.factors[:, 1])
    assert accuracy[2, 1] == pytest.approx(
        one.score(test.codes[:, [2]], test.factors[:, 1]), abs=0.01
    )
    assert sap(train, test) == pytest.approx(top_two_gap(accuracy))
    correlation = np.array(
        [
            [np.corrcoef(code, factor)[0, 1] ** 2 for factor in train.factors.T]
            for code in train.codes.T
        ]
    )
    assert squared_correlation_sap(train) == pytest.approx(top_two_gap(correlation))


def test_factor_vae_votes_by_hand():
    variance = np.array([[0.1, 0.5], [0.2, 0.9], [0.8, 0.3], [0.1, 0.2]])
    votes = count_votes(np.array([0, 0, 1, 1]), variance, 2)
    assert votes.tolist() == [[2, 0], [1, 1]]
    test = np.array([[3, 4], [1, 2]])  # latent 0 stands for factor 0, latent 1 for factor 1
    assert majority_accuracy(votes, test) == pytest.approx((3 + 2) / 10)


def test_batches_share_the_drawn_factor_and_nothing_else():
    table = FactorTable(PERFECT, GRID)
    factor, rows = table.shared(3000, 8, generator("shared"))
    assert np.bincount(factor).min() > 3000 / NUM_FACTORS * 0.85
    levels = table.factors[rows]  # (num, B, F)
    same = (levels == levels[:, :1]).all(1)
    assert same[np.arange(len(factor)), factor].all()
    assert same.mean() == pytest.approx(1 / NUM_FACTORS, abs=0.03)  # by chance: 2^-7 and less
    # every level of every factor turns up as often as in the table
    for k, size in enumerate(SIZES):
        share = np.bincount(levels[factor != k][..., k].ravel()) / levels[factor != k][..., k].size
        np.testing.assert_allclose(share, 1 / size, atol=0.03)
    which, first, second = table.pairs(1000, 4, generator("pairs"))
    equal = table.factors[first] == table.factors[second]
    assert equal[np.arange(1000), :, which].all()
    # a quarter by construction, the rest by chance: (1/3 + 1/4 + 1/5 + 1/2) / 4
    assert equal.mean() < 0.55


def test_a_partial_grid_keeps_the_factor_too():
    kept = GRID.sum(1) % 3 != 0
    table = FactorTable(PERFECT[kept], GRID[kept])
    factor, rows = table.shared(500, 4, generator("partial"))
    assert (np.ptp(table.factors[rows, factor[:, None]], axis=1) == 0).all()


def test_pair_differences_are_zero_for_the_shared_factor():
    differences, factor = pair_differences(
        FactorTable(PERFECT, GRID), 1500, 8, generator("differences")
    )
    assert differences[np.arange(1500), factor].max() == 0
    assert differences.mean() > 0.5


def test_constant_factors_are_dropped():
    constant = torch.cat([GRID[:, :2], torch.full((len(GRID), 1), 7), GRID[:, 2:]], 1)
    with_it, without = (scores(rotated(), factors, num_train=300) for factors in (constant, GRID))
    assert with_it == without
    assert with_it["mig"].context["factor_sizes"] == list(SIZES)


@pytest.mark.slow
def test_latents_below_the_scale_do_not_vote():
    quiet = 0.9 * SMALLEST_SCALE * PERFECT
    result = scores(quiet)
    assert result["factor_vae_score"].value is None
    assert "standard deviation below 0.05" in result["factor_vae_score"].reason
    assert result["mig"].value >= 0.99
    assert scores(1.1 * SMALLEST_SCALE * PERFECT)["factor_vae_score"].value >= 0.99


NAN = PERFECT.clone()
NAN[3, 1] = torch.nan
UNUSABLE = {
    "all 4 latents have collapsed": (torch.ones(len(GRID), 4) + 1e-8 * noise(4), GRID),
    "NaN": (NAN, GRID),
    "1 latent": (PERFECT[:, :1], GRID),
    "1 of 4 factors": (PERFECT, GRID * torch.tensor([0, 1, 0, 0])),
    r"must be \(N, L\)": (PERFECT[:5], GRID),
}


@pytest.mark.parametrize(("reason", "arrays"), UNUSABLE.items(), ids=UNUSABLE)
def test_what_has_no_score_says_why(reason, arrays):
    result = scores(*arrays)
    assert tuple(result) == Disentanglement.names
    for measured in result.values():
        assert measured.value is None
        assert re.search(reason, measured.reason)


@pytest.mark.slow
def test_only_the_seed_decides():
    before = np.random.get_state()[1].copy()
    first, again, other = (scores(rotated(), num_train=300, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["mig"].value != other["mig"].value
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.slow
def test_accuracies_have_a_standard_error():
    result = scores(rotated() + 0.5 * noise(NUM_FACTORS))
    for name in ("factor_vae_score", "beta_vae_score"):
        share = result[name].value
        assert result[name].error == pytest.approx(np.sqrt(share * (1 - share) / 1000), rel=0.01)
    assert 0 < result["dci_informativeness"].error < 0.02
    perfect = scores(PERFECT)
    for name in ("factor_vae_score", "beta_vae_score", "dci_informativeness"):
        assert (perfect[name].value, perfect[name].error) == (1, pytest.approx(0.5 / 1001))
    assert perfect["mig"].context["n_images"] == len(GRID)


@pytest.mark.parametrize("wrong", [{"num_train": 99}, {"num_eval": 0}, {"batch_size": 1}])
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Disentanglement(**wrong)
