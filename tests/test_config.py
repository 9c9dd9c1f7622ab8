"""Every option composes and builds; what a user types ends up where it belongs."""

import pytest
import torch
from conftest import options
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from src.config.build import build
from src.errors import ConfigError
from src.model.base import GenerativeModel

OF_DDPM = ("schedule", "prediction", "weighting", "sampler")
DENOISERS = ("unet", "unet_small", "mlp")
CASES = [("model", m) for m in options("model")]
CASES += [(g, o) for g in OF_DDPM for o in options(g)]
CASES += [("network", n) for n in options("network")]
CASES += [(g, o) for g in ("likelihood", "beta") for o in options(g)]


def model_for(group, option):
    """The words that choose a model which knows the group."""
    if group == "model":
        return []
    is_vae = group in ("likelihood", "beta") or option not in DENOISERS and group == "network"
    return ["model=vae" if is_vae else "model=ddpm"]


@pytest.mark.parametrize(("group", "option"), CASES)
def test_every_option_of_a_model_builds_and_has_a_loss(composed, group, option):
    cfg = composed(*model_for(group, option), f"{group}={option}")
    model = build(cfg, "model")
    assert isinstance(model, GenerativeModel)
    if option == "unet":
        return  # 34 M parameters: its loss is measured in test_network
    losses = model.loss(torch.rand(2, 1, 8, 8) * 2 - 1)
    assert losses["loss"].isfinite()
    assert losses["loss"].requires_grad


@pytest.mark.parametrize("dataset", options("dataset"))
@pytest.mark.parametrize("model", options("model"))
def test_every_model_builds_for_every_data_set(composed, model, dataset):
    cfg = composed(f"model={model}", f"dataset={dataset}", "dataset.root=somewhere")
    shape = tuple(cfg.dataset.image_shape)
    built = build(cfg, "model").eval()
    assert built.loss(torch.zeros(1, *shape))["loss"].isfinite()


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_builds(composed, experiment):
    cfg = composed(f"experiment={experiment}")
    assert isinstance(build(cfg, "model"), GenerativeModel)
    assert (cfg.trainer.max_steps or cfg.dataset.max_steps) > 0


def test_experiments_hold_what_their_papers_say(composed):
    ho = composed("experiment=cifar10_ddpm")
    model = build(ho, "model")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 35.7
    assert (ho.optimizer.lr, ho.callback.ema.decay, ho.dataset.global_batch_size) == (
        2e-4,
        0.9999,
        128,
    )
    assert ho.dataset.flip
    assert model.schedule.num_timesteps == 1000
    burda = build(composed("experiment=mnist_vae_200"), "model")
    widths = [m.out_features for m in burda.modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(widths) == sorted([200, 200, 2 * 50, 200, 200, 784])


@pytest.mark.parametrize(
    "group", ["optimizer", "lr_schedule", "trainer", "logger", "features", "metric", "callback"]
)
def test_every_option_of_the_shared_groups_composes(composed, group):
    for option in options(group):
        cfg = composed(f"{group}={option}")
        OmegaConf.to_container(cfg, resolve=True)
        assert cfg[group if group != "trainer" else "trainer"]


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("lr_schedule", options("lr_schedule"))
def test_optimizers_and_schedules_take_steps(composed, optimizer, lr_schedule):
    cfg = composed(f"optimizer={optimizer}", f"lr_schedule={lr_schedule}")
    weight = torch.nn.Parameter(torch.ones(3))
    stepper = build(cfg, "optimizer")([weight])
    rates = build(cfg, "lr_schedule")(stepper, total_steps=10)
    (rate,) = rates.get_last_lr()
    assert rate == stepper.param_groups[0]["lr"] <= cfg.optimizer.lr
    decay = stepper.param_groups[0]["weight_decay"] if optimizer == "adamw" else 0
    weight.sum().backward()
    stepper.step()
    rates.step()
    # Adam's first step is the rate, whatever the gradient; decay is decoupled in AdamW
    torch.testing.assert_close(1 - weight, torch.full((3,), rate * (1 + decay)), rtol=1e-2, atol=0)


def test_a_model_brings_its_own_groups_only(composed):
    with pytest.raises(ConfigCompositionException):
        composed("model=vae", "schedule=cosine")
    assert "schedule" not in composed("model=vae")
    assert "beta" not in composed("model=ddpm")


def test_beta_vae_is_the_vae_with_another_beta(composed):
    vae, beta_vae = composed("model=vae"), composed("model=beta_vae")
    assert vae.beta.value == 1
    assert beta_vae.beta.value == 4
    vae.beta.value = 4
    assert vae == beta_vae


def test_both_halves_of_an_autoencoder_follow_one_setting(composed):
    model = build(
        composed("model=vae", "network.encoder.channels=16", "model.latent_dim=3"), "model"
    )
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert sum(p.numel() for p in model.decoder.parameters()) < 60_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule.num_timesteps=0"], "schedule.num_timesteps=0: "),
        (["schedule=linear", "schedule.beta_end=1.5"], "schedule.beta_end=1.5: "),
        (["schedule=cosine", "schedule.max_beta=2"], "schedule.max_beta=2: "),
        (
            ["sampler.num_steps=2000"],
            "sampler.num_steps=2000: must be between 1 and num_timesteps=1000",
        ),
        (["sampler.num_steps=0"], "sampler.num_steps=0: "),
        (["sampler.eta=2"], "sampler.eta=2: "),
        (["sampler=ddpm", "sampler.variance=none"], "sampler.variance=none: "),
        (["weighting=min_snr", "weighting.gamma=0"], "weighting.gamma=0: "),
        (["dataset.image_shape=[1,9,9]"], "dataset.image_shape=(1, 9, 9): image size 9x9"),
        (["network.shape=[3,8,8]"], "network.shape=[3, 8, 8]: the images are [1, 8, 8]"),
        (["network.norm=weird"], "network.norm=weird: "),
        (["network=conv_autoencoder"], "needs a denoiser"),
        (["model=vae", "model.latent_dim=0"], "model.latent_dim=0: "),
        (["model=vae", "network=unet"], "network=conv_autoencoder or network=mlp_autoencoder"),
        (["model=vae", "beta.value=-1"], "beta.value=-1: "),
        (["model=vae", "likelihood.sigma=0"], "likelihood.sigma=0: "),
        (["model=vae", "network.decoder.upsample=nope"], "network.decoder.upsample=nope: "),
    ],
)
def test_a_bad_value_is_refused_by_the_name_that_is_typed(composed, words, message):
    with pytest.raises(ConfigError) as refused:
        build(composed(*words), "model")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
