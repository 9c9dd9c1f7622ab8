"""Settings of any value: a run is assembled, or one line names the setting; never anything else."""

import copy
import functools
import math

import pytest
import torch
from conftest import CONF, options
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.config.settings import check_settings
from src.errors import ConfigError, ProjectError
from src.evaluation.generation import GenerationEvaluator
from src.model.diffusion import Diffusion
from src.network.mlp import MLP
from src.prediction import Epsilon, Sample, Velocity
from src.sampler.ddim import ddim
from src.schedule.base import NoiseSchedule
from src.training.assembly import assemble
from src.weighting import Uniform

LEFT_OUT = ("mnist", "fashion_mnist", "cifar10", "image_folder", "webdataset")  # no data at hand
LEFT_OUT += ("unet",)  # unet_small at full size
# the last three are the driver's
NO_NUMBERS = ("experiment", "logger", "launcher", "sweep", "search")
NUMBERS = (
    "sigma",
    "max_epochs",
    "limit_train_batches",
    "test_samples",
    "every_steps",
    "val_check_interval",
)
OF_VAE = ("likelihood", "beta", "conv_autoencoder", "mlp_autoencoder")
# together with others
ALSO_CALLED = {"dataset.image_size": "dataset.image_shape", "trainer.num_nodes": "devices"}
# not by the assembly; the latter is the command line's
NOT_USED = ("dataset.num_classes", "grace_seconds")


def leaves(node, path):
    """Names of the settings that are numbers, lists of numbers, or null in place of a number."""
    for key, value in node.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, name)
        number = isinstance(value, int | float | list) and not isinstance(value, bool)
        if name not in NOT_USED and (number or (value is None and key in NUMBERS)):
            yield name


def every_setting():
    """(words that choose the option, name of the setting) for all groups."""
    for group in sorted(
        folder.name
        for folder in CONF.iterdir()
        if folder.is_dir() and folder.name not in NO_NUMBERS
    ):
        for option in (name for name in options(group) if name not in LEFT_OUT):
            content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
            content.pop("defaults", None)
            vae = group in OF_VAE or option in OF_VAE
            words = (
                *(["model=vae"] if vae else []),
                *([] if group == "callback" else [f"{group}={option}"]),
            )
            is_global = "# @package _global_" in (CONF / group / f"{option}.yaml").read_text()
            yield from ((words, name) for name in leaves(content, "" if is_global else group))
    own = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    yield from (
        ((), name)
        for name in leaves({k: own[k] for k in own if k not in ("defaults", "hydra")}, "")
    )


SETTINGS = sorted(set(every_setting()))
ODD = [
    -1,
    0,
    1,
    10**12,
    2**70,
    0.5,
    -0.5,
    1.5,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    True,
    None,
    "abc",
    [],
    [0],
    ["a"],
]
VALUES = (
    st.sampled_from(ODD)
    | st.integers(-3, 12)
    | st.floats()
    | st.lists(st.integers(-1, 6), max_size=3)
)

REFUSED = [
    (
        ["callback.checkpoint.monitor=val/nope"],
        "callback.checkpoint.monitor=val/nope: must be one of test/",
    ),
    (["callback.ema=5"], "callback.ema=5: must be an object"),
    (["metric.measures.kid=5"], "metric.measures.kid=5: must be an object"),
    (["trainer.deterministic=maybe"], "trainer.deterministic=maybe: must be true, false or warn"),
    (
        ["dataset=mnist", "dataset.root=x", "optimized_metric=val/nope"],
        "optimized_metric=val/nope: must be one of",
    ),
    (
        ["dataset=mnist", "dataset.root=x", "lr_schedule.final=2"],
        "lr_schedule.final=2: must be between 0 and 1",
    ),
    (["trainer.devices=999"], "trainer.devices=999: must be auto or from 1 to"),
    (["trainer.max_time=soon"], "trainer.max_time=soon: must be DD:HH:MM:SS"),
    (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: must be batches"),
    (["trainer=cpu", "trainer.precision=16-mixed"], "needs a GPU, and this run is on the CPU; use"),
    (["dataset.max_steps=0"], "dataset.max_steps=0: must be an integer >= 1"),
    (["optimizer.lr=nan"], "optimizer.lr=nan: must be a finite number"),
    (
        ["model=vae", "beta.value=1e300"],
        "beta.value=1e+300: must be a finite number, at most 3.4e+38",
    ),
    (
        ["model=vae", "+model.latent_dims=3"],
        "model.latent_dims=3: there is no such setting; did you mean latent_dim?",
    ),
    (
        ["model=vae", "likelihood=bernoulli"],
        "the images are not binarised; dataset.binarize=dynamic has",
    ),
    (
        ["model=vae", "likelihood=logistic", "likelihood.channels=3"],
        "likelihood.channels=3: the images have 1 channels",
    ),
    (
        ["schedule=linear", "schedule.beta_end=0.5"],
        "prediction=epsilon: says nothing about x0 at t = T",
    ),
]


@functools.cache
def base(words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["run_dir=unused", "cache_dir=unused", "logger=csv", *words])


def check(words, name, value):
    cfg = copy.deepcopy(base(words))
    OmegaConf.update(cfg, name, value, merge=False)
    message = ""
    try:
        assemble(cfg)
    except ProjectError as refused:
        message = str(refused)
    if message:
        names = {name, name.rpartition(".")[2], ALSO_CALLED.get(name, name)}
        assert any(one in message for one in names), f"{name}={value}: {message}"
        assert "\n" not in message
    else:
        assert not isinstance(value, float) or math.isfinite(value)
    return message


@pytest.fixture(autouse=True, scope="module")
def no_features():
    """Features are trained or downloaded by a step of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationEvaluator, "prepare", lambda *args, **kwargs: None)
        yield


def test_all_groups_have_settings():
    assert len(SETTINGS) > 90
    assert {"schedule", "network", "trainer", "optimizer", "callback"} <= {
        name.split(".")[0] for _, name in SETTINGS
    }


@pytest.mark.slow
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(SETTINGS), VALUES)
def test_any_value_is_taken_or_refused_by_its_name(setting, value):
    check(*setting, value)


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_work_is_refused_with_a_way_out(words, message):
    with pytest.raises(ConfigError) as refused:
        assemble(copy.deepcopy(base(tuple(words))))
    assert message in str(refused.value)


def test_what_is_not_ours_is_left_to_hydra():
    for node in (
        {"_target_": "src.nowhere.Nothing", "a": 1},
        {"_target_": 5},
        {"a": "${b}", "b": "${a}"},
    ):
        check_settings(OmegaConf.create({"group": node, "b": "${a}", "a": "${b}"}))
    with pytest.raises(ConfigError, match="^a=text: must be a number$"):
        check_settings(
            OmegaConf.create(
                {"group": {"_target_": "src.beta.Constant", "value": "${a}"}, "a": "text"}
            )
        )


def test_noise_without_end_needs_another_prediction():
    """At t = T nothing is left of x0 (signal 0 in float32): the noise tells nothing about it."""
    schedule = NoiseSchedule(torch.full((10,), 1 - 1e-12, dtype=torch.float64), name="mine")
    assert schedule.scales(torch.tensor([10]))[0].item() == 0
    rest = (Uniform(), functools.partial(ddim, num_steps=2), (1, 4, 4))
    with pytest.raises(
        ConfigError, match="^prediction=epsilon: .* use prediction=velocity or prediction=sample"
    ):
        Diffusion(MLP((1, 4, 4), hidden=4), schedule, Epsilon(), *rest)
    for prediction in (Velocity(), Sample()):
        model = Diffusion(MLP((1, 4, 4), hidden=4), schedule, prediction, *rest)
        assert model.loss(torch.zeros(16, 1, 4, 4))["loss"].isfinite()
        assert model.sample(2).isfinite().all()
