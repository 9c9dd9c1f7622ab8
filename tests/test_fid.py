"""FID with correction, error and floor: simulations of known truth, finite differences."""

import pytest
import torch
from support import expected_bias

from src.metric import frechet
from src.metric.base import Reference, Samples
from src.metric.fid import Fid, bias_and_error
from src.metric.frechet import Moments, coupling, covariance_part, distance
from src.noise import generator

DEVIATIONS = torch.logspace(0, -0.5, 16, dtype=torch.float64)


def repeated(scale, shift, num_real, num_fake, repeats):
    """fid and fid_corrected (repeats, 2) and errors of independent sets.

    They are drawn from N(0, diag) and scale * N(0, diag) + shift.
    """
    random = generator("fid", scale, shift)

    def draw(num):
        return torch.randn(num, len(DEVIATIONS), generator=random, dtype=torch.float64) * DEVIATIONS

    found = [
        Fid()(Samples(Reference(draw(num_real)), scale * draw(num_fake) + shift))
        for _ in range(repeats)
    ]
    values = torch.tensor([[each["fid"].value, each["fid_corrected"].value or 0] for each in found])
    return values, torch.tensor([each["fid"].error for each in found])


def true_distance(scale, shift):
    return float((1 - scale) ** 2 * DEVIATIONS.square().sum() + len(DEVIATIONS) * shift**2)


def test_corrected_distance_of_equal_distributions_averages_to_zero():
    values, _ = repeated(1.0, 0.0, num_real=2000, num_fake=1000, repeats=200)
    raw, corrected = values.mean(0).tolist()
    bias = expected_bias(DEVIATIONS.square().diag(), 2000, 1000)
    assert abs(corrected) < 0.05 * bias  # standard error 1 %
    assert raw == pytest.approx(bias, rel=0.05)


def test_correction_holds_down_to_four_images_per_feature():
    """To first order alone it would leave 7 %."""
    values, _ = repeated(1.0, 0.0, num_real=600, num_fake=64, repeats=600)
    raw, corrected = values.mean(0).tolist()
    assert abs(corrected) < 0.05 * raw  # standard error 0.6 %


@pytest.mark.parametrize("scale", [0.8, 1.5])
def test_correction_holds_where_the_distributions_differ(scale):
    """One that took the real images' covariance for both would be wrong.

    It would remove 30 % too much, or too little.
    """
    values, _ = repeated(scale, 0.0, num_real=4000, num_fake=100, repeats=200)
    raw, corrected = (values.double().mean(0) - true_distance(scale, 0.0)).tolist()
    assert abs(corrected) < 0.15 * raw  # standard error 3 to 5 %


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.2), (1.3, 0.1), (0.0, 0.1)]
)
def test_error_is_the_spread_over_repetitions(scale, shift):
    values, errors = repeated(scale, shift, num_real=600, num_fake=200, repeats=150)
    for sd in values.std(dim=0).tolist():
        assert float(errors.mean()) == pytest.approx(sd, rel=0.25)  # standard error of an sd 6 %


def test_error_is_sound_with_no_more_images_than_features():
    values, errors = repeated(1.0, 0.1, num_real=600, num_fake=16, repeats=150)
    assert 0.75 < float(errors.mean() / values[:, 0].std()) < 1.5


def test_error_uses_the_derivative_of_the_distance():
    """J by finite differences of weighted moments, for unequal Gaussians that do not commute."""
    random = generator("influence")
    x = torch.randn(200, 3, generator=random, dtype=torch.float64)
    y = (
        torch.randn(150, 3, generator=random, dtype=torch.float64)
        @ torch.tensor([[0.5, 1, 0], [0, 2, 0], [1, 0, 1]]).double()
    )

    def moments(z, weights):
        mean = weights @ z / weights.sum()
        return mean, (weights[:, None] * (z - mean)).T @ (z - mean) / weights.sum()

    ones = [torch.ones(len(z), dtype=torch.float64) for z in (x, y)]
    sides = (
        (
            lambda weights: distance(Moments(*moments(x, weights)), Moments(*moments(y, ones[1]))),
            200,
        ),
        (
            lambda weights: distance(Moments(*moments(x, ones[0])), Moments(*moments(y, weights))),
            150,
        ),
    )
    first_order = 0.0
    for of, n in sides:
        steps = 1e-5 * torch.eye(n, dtype=torch.float64)
        slopes = torch.stack([of(1 + step) - of(1 - step) for step in steps]) / 2e-5
        first_order += float(slopes.var()) * n
    a, b = Moments.of(x), Moments.of(y)
    _, second_order = covariance_part(coupling(a, b)[0], 200, 150)
    second_order += 2 * float((a.cov / 200 + b.cov / 150).square().sum())
    _, error = bias_and_error(Reference(x), Reference(y), *coupling(a, b))
    # weights count n, the covariance n - 1
    assert error**2 == pytest.approx(first_order - second_order, rel=0.03)


def test_corrected_needs_four_images_per_feature_on_both_sides():
    x = torch.randn(400, 8, generator=generator("few"))
    real = Reference(x[:200])
    few = Fid()(Samples(real, x[200:231]))
    assert few["fid_corrected"].value is None
    assert few["fid_corrected"].reason == "needs N >= 4 d = 32 images, there are 31 generated"
    assert few["fid"].value > 0
    enough = Fid()(Samples(real, x[200:232]))
    assert enough["fid"].value - enough["fid_corrected"].value == pytest.approx(
        enough["fid_corrected"].context["bias"]
    )
    other = Fid()(Samples(Reference(x[:31]), x[200:]))
    assert other["fid_corrected"].reason.endswith("there are 31 real")


def test_floor_is_the_distance_of_the_held_out_images():
    x = torch.randn(300, 4, generator=generator("floor"))
    real = Reference(x[:100])
    found = Fid()(Samples(real, x[100:200] * 2, held_out=x[200:]))
    assert tuple(found) == Fid.names
    assert found["fid"].context == {"n_real": 100, "n_fake": 100}
    assert {type(each.value) for each in found.values()} == {float}
    floor = Fid().floor(real, Reference(x[200:]))
    generated = Fid()(Samples(real, x[200:]))["fid"]
    assert (floor.value, floor.error) == (generated.value, generated.error)


def test_a_pair_of_covariances_is_decomposed_once(monkeypatch):
    x = torch.randn(300, 4, generator=generator("once"))
    real, decomposed, eigen = Reference(x[:100]), [], frechet.eigen
    assert real.moments.root.shape == (4, 4)
    monkeypatch.setattr(frechet, "eigen", lambda matrix: decomposed.append(matrix) or eigen(matrix))
    Fid()(Samples(real, x[100:200]))
    assert len(decomposed) == 1


def test_collapsed_images_have_a_distance():
    x = torch.randn(100, 4, generator=generator("collapsed"), dtype=torch.float64)
    found = Fid()(Samples(Reference(x), torch.ones(50, 4)))
    assert found["fid"].value == pytest.approx(
        float((x.mean(0) - 1).square().sum() + x.T.cov().trace())
    )
    assert found["fid_corrected"].context["bias"] == pytest.approx(float(x.T.cov().trace()) / 100)
    assert found["fid"].error > 0
