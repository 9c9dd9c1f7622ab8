"""A run goes on with the settings that its weights depend on, or is told which ones differ."""

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src.config.settings import setting_of
from src.errors import ConfigError
from src.train import train
from src.training.assembly import assemble

SMALL = ["network=mlp", "callback.generation=null", "callback.grid=null", "logger=csv"]
SMALL += [
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
]


def composed(*words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*SMALL, *words])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of one step of a tiny diffusion model."""
    directory = tmp_path_factory.mktemp("resume") / "run"
    train(composed(f"run_dir={directory}"))
    return directory


def refusal(run_dir, *words):
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        assemble(composed(f"run_dir={run_dir}", "resume=auto", *words))
    assert sorted(run_dir.rglob("*")) == before
    return str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_steps=7", "trainer.max_time=00:00:01:00", "trainer.val_check_interval=2"],
        ["trainer.max_steps=null", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"],
        ["trainer.devices=2", "trainer.precision=bf16-mixed", "trainer.deterministic=true"],
        ["logger.csv=null", "callback.progress=null", "callback.checkpoint.monitor=val/mse"],
        [
            "sampler=heun",
            "metric=none",
            "features=pixels",
            "optimized_metric=val/mse",
            "cache_dir=elsewhere",
        ],
        [
            "dataset.root=elsewhere",
            "dataset.num_workers=2",
            "dataset.max_steps=5",
            "trainer.limit_val_batches=2",
        ],
    ],
)
def test_how_long_where_and_what_is_shown_may_change(run_dir, words):
    assert assemble(composed(f"run_dir={run_dir}", "resume=auto", *words)).start.step == 1


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["seed=1"], "seed 0 -> 1"),
        (["network.hidden=16"], "network.hidden 512 -> 16"),
        (["network=unet_small"], "network mlp -> unet"),
        (["schedule.num_timesteps=500"], "schedule.num_timesteps 1000 -> 500"),
        (["schedule=linear"], "schedule cosine -> linear"),
        (["prediction=velocity"], "prediction epsilon -> velocity"),
        (["weighting=min_snr"], "weighting uniform -> min_snr"),
        (["model.clip_denoised=false"], "model.clip_denoised true -> false"),
        (["dataset.flip=true"], "dataset.flip false -> true"),
        (["dataset.binarize=static"], "dataset.binarize null -> static"),
        (["dataset.global_batch_size=64"], "dataset.global_batch_size 128 -> 64"),
        (["optimizer.lr=0.5"], "optimizer.lr 0.003 -> 0.5"),
        (["optimizer=adam"], "optimizer adamw -> adam"),
        (["lr_schedule.warmup_steps=7"], "lr_schedule.warmup_steps 100 -> 7"),
        (["callback.ema.decay=0.5"], "callback.ema.decay 0.99 -> 0.5"),
        (["callback.ema=null"], "callback.ema ema -> null"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches 1 -> 2"),
        (["trainer.gradient_clip_val=null"], "trainer.gradient_clip_val 1.0 -> null"),
    ],
)
def test_what_the_weights_depend_on_may_not(run_dir, words, difference):
    message = refusal(run_dir, *words)
    assert message.startswith("resume=auto: the checkpoint was made with other settings: ")
    assert f"settings: {difference}; give the same, or init_from={run_dir} for" in message


def test_another_model_is_told_without_what_it_brings(cli, run_dir, tmp_path):
    words = [
        "model=vae",
        "logger=csv",
        "trainer.max_steps=9",
        f"ckpt_path={run_dir}",
        "hydra.run.dir=other",
    ]
    done = cli("train", *words)
    assert done.code == 2
    assert f"error: ckpt_path={run_dir}: the checkpoint was made with other settings: " in done.err
    assert "model diffusion -> vae" in done.err
    assert "likelihood" not in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_at_most_ten_differences_are_listed(run_dir):
    words = [
        "seed=1",
        "dataset.flip=true",
        "dataset.binarize=static",
        "optimizer.lr=1",
        "optimizer.weight_decay=0",
    ]
    words += [
        "schedule.num_timesteps=60",
        "schedule.offset=0.1",
        "schedule.max_beta=0.5",
        "network.num_layers=1",
    ]
    words += ["callback.ema.decay=0", "network.dropout=0.5", "model.clip_denoised=false"]
    message = refusal(run_dir, *words)
    assert message.count(" -> ") == 10
    assert " and 2 more; " in message


def test_settings_are_called_as_they_are_typed():
    raw = {
        "model": {
            "schedule": "${schedule}",
            "decoder": "${network.decoder}",
            "size": "${dataset.shape.0}",
        },
        "schedule": {"steps": 5},
        "network": {
            "encoder": {"width": 3},
            "decoder": {"width": "${..encoder.width}", "norm": "${.kind}", "kind": "a"},
        },
        "dataset": {"shape": [1, 2]},
    }
    assert setting_of(raw, "model.schedule.steps") == ("schedule.steps", 5)
    assert setting_of(raw, "model.decoder.width") == ("network.encoder.width", 3)
    assert setting_of(raw, "model.decoder.norm") == ("network.decoder.kind", "a")
    assert setting_of(raw, "network.encoder") == ("network.encoder", {"width": 3})
    assert setting_of(raw, "model.size")[0] == "dataset.shape.0"
    assert setting_of(raw, "nowhere.at.all") == ("nowhere.at.all", "???")
