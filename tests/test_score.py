"""Likelihoods on one scale: ``score`` of every model, bounds of a VAE against exact evidence."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from support import bits, images, linear_vae, make_diffusion, make_vae, names, seeded

from src.bound import variational_bound
from src.flow import flow_bound
from src.model.base import CanEncode, CanEstimate, CanScore, Effort, HasPosterior
from src.noise import generators

EFFORT = Effort(importance_samples=6, chunk=4, timesteps=8, flow_steps=3)
SCORED = {f"vae {name}": partial(make_vae, name) for name in names("likelihood")}
SCORED |= {f"diffusion {name}": partial(make_diffusion, name) for name in names("prediction")}


def scored(name, picks=range(6), effort=EFFORT):
    torch.manual_seed(0)
    return SCORED[name]().eval().score(bits()[list(picks)], effort, generators(picks))


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_bounds_of_a_probability_image_by_image(name):
    result = scored(name)
    expected = {"elbo", "iwae_6"} if name.startswith("vae") else {"vlb_large", "vlb_small", "flow"}
    assert set(result.log_likelihood) == expected
    for value in result.log_likelihood.values():
        assert (value.shape, value.dtype, value.requires_grad) == ((6,), torch.float32, False)
        assert value.isfinite().all()
        assert (value < 0).all()
    again = scored(name)
    assert all(
        torch.equal(value, again.log_likelihood[key])
        for key, value in result.log_likelihood.items()
    )
    alone = scored(name, (4, 1))
    for key, value in result.log_likelihood.items():
        torch.testing.assert_close(value[[4, 1]], alone.log_likelihood[key], rtol=1e-4, atol=1e-4)
        assert value.unique().numel() == 6


@pytest.mark.parametrize("name", SCORED)
def test_scores_in_inference_mode_and_with_one_generator(name):
    model = SCORED[name]().eval()
    expected = model.score(bits(), EFFORT, seeded()).log_likelihood
    with torch.inference_mode():
        found = model.score(bits(), EFFORT, seeded()).log_likelihood
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert model.log_likelihood(bits(), seeded()).shape == (8,)


def test_capabilities_of_scoring():
    vae, diffusion = make_vae("bernoulli"), make_diffusion()
    known = [CanScore, CanEstimate, CanEncode, HasPosterior]
    assert [c for c in known if isinstance(vae, c)] == known
    assert [c for c in known if isinstance(diffusion, c)] == known[:2]
    assert (vae.discrete_scale, make_vae().discrete_scale, diffusion.discrete_scale) == (
        "bits",
        "8-bit",
        "8-bit",
    )
    assert torch.equal(vae.encode(bits()), vae.posterior(bits()).mean)


def test_bernoulli_has_no_score_of_grey_images():
    with pytest.raises(ValueError, match="likelihood of bits only"):
        make_vae("bernoulli").score(images(), EFFORT, seeded())


def test_parts_of_a_vae_add_up():
    result = scored("vae logistic")
    torch.testing.assert_close(
        result.parts["distortion"] + result.parts["rate"], -result.log_likelihood["elbo"]
    )
    assert (result.parts["rate"] > 0).all()
    assert result.times is None


def test_diffusion_scores_by_its_bound_clipped_and_its_flow_unclipped():
    torch.manual_seed(0)
    model, x = make_diffusion().eval(), images()
    generator = seeded()
    result = model.score(x, EFFORT, generator)
    again = seeded()
    bound = variational_bound(model.denoise, model.schedule, x, num_timesteps=8, generator=again)
    model.clip_denoised = False
    flow = flow_bound(model.denoise, model.schedule, x, num_steps=3, generator=again)
    torch.testing.assert_close(result.log_likelihood["flow"], flow.detach())
    assert (result.times.shape, result.times.dtype) == ((8, 8), torch.long)
    assert torch.equal(result.times, bound.times)
    for variance in ("large", "small"):
        assert torch.equal(
            result.log_likelihood[f"vlb_{variance}"], bound.log_likelihood(variance).detach()
        )
        assert torch.equal(result.parts[f"L_t_{variance}"], bound.terms[variance])
        assert torch.equal(result.parts[f"distortion_{variance}"], bound.reconstruction[variance])
    unclipped = model.score(x, EFFORT, seeded()).log_likelihood["vlb_large"]
    assert (unclipped < result.log_likelihood["vlb_large"]).all()
    whole = model.score(x, Effort(timesteps=None), seeded())
    assert set(whole.log_likelihood) == {"vlb_large", "vlb_small"}
    assert torch.equal(whole.times, torch.arange(2, 51).expand(8, -1))
    # T = 50 < 100 terms
    assert torch.equal(model.log_likelihood(x, seeded()), whole.log_likelihood["vlb_large"])


@torch.no_grad()
def test_weights_of_the_exact_posterior_are_the_evidence():
    model, evidence = linear_vae()
    x = images(5).double()
    expected = evidence.log_prob(x.flatten(1)).expand(7, 5)
    torch.testing.assert_close(
        model.log_weights(x, 7, seeded(), chunk=3), expected, rtol=0, atol=2e-6
    )


@torch.no_grad()
def test_mean_weight_is_unbiased_and_the_bound_grows_with_k():
    """q is wider than the posterior and moved.

    E of the weights is p(x), E of their log-mean grows from the ELBO.
    """
    model, evidence = linear_vae(shift=0.3, log_ratio=0.6)
    x, copies = images(5).double(), 8192
    ratio = model.log_weights(x, copies, seeded(), chunk=1024) - evidence.log_prob(x.flatten(1))
    error = ratio.exp().std(0) / copies**0.5
    assert ((ratio.exp().mean(0) - 1).abs() < 5 * error).all()
    previous = -model.posterior(x).kl(linear_vae()[0].posterior(x)).sum(1)  # ELBO less evidence
    for k in (1, 4, 16, 64, 256):
        gaps = ratio.view(copies // k, k, 5).logsumexp(1) - math.log(k)
        error = gaps.std(0) / (copies / k) ** 0.5
        assert (gaps.mean(0) < 5 * error).all()
        # groups of groups: Jensen on each path
        assert (gaps.mean(0) > previous - (5 * error if k == 1 else 0)).all()
        previous = gaps.mean(0)
    assert (previous.abs() < 0.05).all()


@torch.no_grad()
def test_bounds_of_discrete_images_against_quadrature():
    """The exact log-probability by Gauss-Hermite in z; scores of many copies, order and limit."""
    model, _ = linear_vae(shift=0.2, log_ratio=0.5)
    x, copies = images(4).double(), 400
    exact = quadrature(model, x)
    repeated = x.repeat_interleave(copies, 0)

    def mean(effort, name):
        values = model.score(repeated, effort, seeded()).log_likelihood[name].view(4, copies)
        return values.mean(1), values.std(1) / copies**0.5

    previous, previous_error = mean(Effort(importance_samples=1), "elbo")
    assert (previous < exact).all()
    for k in (5, 50, 200):
        value, error = mean(Effort(importance_samples=k, chunk=50), f"iwae_{k}")
        assert (value > previous - 5 * (error + previous_error)).all()
        assert (value < exact + 5 * error).all()
        previous, previous_error = value, error
    assert ((exact - previous) < 0.02).all()


def quadrature(model, x):
    """Log-probability of the discrete images.

    z is on Hermite nodes of the exact posterior of their density.
    """
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    weights = torch.cartesian_prod(weights, weights).log().sum(1) - math.log(2 * math.pi)
    q, terms = linear_vae()[0].posterior(x), []
    for e, weight in zip(torch.cartesian_prod(nodes, nodes), weights, strict=True):
        z = q.mean + (q.log_var / 2).exp() * e
        prior_over_q = (e.square() - z.square() + q.log_var).sum(1) / 2
        terms.append(model.likelihood.log_mass(model.decoder(z), x) + prior_over_q + weight)
    return torch.stack(terms).logsumexp(0)


@torch.no_grad()
def test_five_thousand_samples_in_chunks_are_the_same_bound():
    """sigma is so wide that a probability is the density times the width of its bin.

    This holds away from the open bins.
    """
    model, evidence = linear_vae(shift=0.1)
    x = 0.5 * images(3).double()
    result = model.score(x, Effort(importance_samples=5000, chunk=700), generators(range(3)))
    expected = evidence.log_prob(x.flatten(1)) + 16 * math.log(2 / 255)
    torch.testing.assert_close(result.log_likelihood["iwae_5000"], expected, rtol=0, atol=0.02)
