"""Predictions are affine in (x_t, output); weightings make them equivalent objectives."""

import pytest
import torch
from support import build, images, make_diffusion, names, options, schedule_of, seeded
from torch import nn

from src.errors import ConfigError
from src.prediction import Epsilon, Sample, Velocity
from src.weighting import MinSNR, Uniform

GAMMA = 5.0


@pytest.fixture(params=["linear", "cosine"])
def noised(request):
    """x0, eps, x_t, signal, sigma of one image at every t of a float64 schedule."""
    process = schedule_of(request.param, 100)
    signal, sigma = (
        square[1:].sqrt().view(-1, 1, 1, 1) for square in (process.alpha_bar, process.sigma_squared)
    )
    x0, eps = torch.randn(2, 100, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    return x0, eps, signal * x0 + sigma * eps, signal, sigma


@options("prediction")
def test_target_leads_back_to_x0(prediction, noised):
    kind, (x0, eps, x_t, signal, sigma) = build("prediction", prediction), noised
    torch.testing.assert_close(
        kind.to_x0(kind.target(x0, eps, signal, sigma), x_t, signal, sigma), x0
    )


@options("prediction")
def test_x0_is_affine_in_x_t_and_output(prediction, noised):
    kind, (output, _, x_t, signal, sigma) = build("prediction", prediction), noised
    c_skip, c_out = kind.coefficients(signal, sigma)
    torch.testing.assert_close(
        kind.to_x0(output, x_t, signal, sigma), c_skip * x_t + c_out * output
    )
    assert ((c_out != 0) & c_out.isfinite()).all()


@pytest.mark.parametrize(
    ("kind", "c_skip", "c_out"),
    [
        (Epsilon(), lambda signal, sigma: 1 / signal, lambda signal, sigma: -sigma / signal),
        (Sample(), lambda signal, sigma: 0 * signal, lambda signal, sigma: 1 + 0 * signal),
        (Velocity(), lambda signal, sigma: signal, lambda signal, sigma: -sigma),
    ],
    ids=["epsilon", "sample", "velocity"],
)
def test_coefficients_of_the_papers(kind, c_skip, c_out, noised):
    *_, signal, sigma = noised
    for mine, paper in zip(kind.coefficients(signal, sigma), (c_skip, c_out), strict=True):
        torch.testing.assert_close(mine.expand_as(signal), paper(signal, sigma))


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (Epsilon(), lambda snr: snr),
        (Sample(), lambda snr: snr**0),
        (Velocity(), lambda snr: snr + 1),
    ],
    ids=["epsilon", "sample", "velocity"],
)
def test_squared_error_is_snr_times_that_of_x0(kind, factor, noised):
    x0, eps, x_t, signal, sigma = noised
    output = torch.randn(x0.shape, generator=seeded(1), dtype=torch.float64)
    error = (output - kind.target(x0, eps, signal, sigma)).square()
    error_of_x0 = (kind.to_x0(output, x_t, signal, sigma) - x0).square()
    torch.testing.assert_close(
        error, factor((signal / sigma) ** 2) * error_of_x0, rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        (Epsilon(), lambda snr: snr.clamp(max=GAMMA) / snr),
        (Sample(), lambda snr: snr.clamp(max=GAMMA)),
        (Velocity(), lambda snr: snr.clamp(max=GAMMA) / (snr + 1)),
    ],
    ids=["epsilon", "sample", "velocity"],
)
def test_min_snr_weights_of_the_paper(kind, weight, noised):
    *_, signal, sigma = noised
    _, c_out = kind.coefficients(signal, sigma)
    snr = (signal / sigma) ** 2
    assert snr.min() < GAMMA < snr.max()
    torch.testing.assert_close(MinSNR(GAMMA)(signal, sigma, c_out), weight(snr))


@options("weighting")
@options("prediction")
def test_weights_are_positive_and_finite_in_float32(weighting, prediction):
    process = schedule_of("cosine")
    signal, sigma = process.scales(torch.arange(1, 1001))
    _, c_out = build("prediction", prediction).coefficients(signal, sigma)
    weight = build("weighting", weighting)(signal, sigma, c_out).expand_as(signal)
    assert (weight.isfinite() & (weight > 0)).all()


class Estimating(nn.Module):
    """A network whose output encodes the estimate tanh(x_t) of x_0, whatever it predicts."""

    def __init__(self, prediction, process):
        super().__init__()
        self.prediction, self.process = prediction, process

    def forward(self, x_t, t):
        c_skip, c_out = self.prediction.coefficients(*self.process.scales(t))
        return (x_t.tanh() - c_skip * x_t) / c_out


def test_min_snr_makes_the_predictions_the_same_objective():
    losses = []
    for name in names("prediction"):
        model = make_diffusion(name, "min_snr")
        model.network = Estimating(model.prediction, model.schedule)
        losses.append(model.loss(images(64).double(), generator=seeded())["loss"])
    torch.testing.assert_close(losses, losses[:1] * len(losses), rtol=1e-4, atol=0)


def test_uniform_weight_is_one(noised):
    *_, signal, sigma = noised
    assert (Uniform()(signal, sigma, -sigma) == 1).all()


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_bad_gamma_is_refused(gamma):
    with pytest.raises(ConfigError, match="^gamma="):
        MinSNR(gamma)
