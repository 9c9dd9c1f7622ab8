"""A named run is the base: nothing is typed but the change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from src.checkpoint import load_model
from src.comparison.run_settings import run_settings
from src.config.references import CONF, as_referred, without_references
from src.config.run_config import OF_MACHINE, named_run, on_run
from src.errors import ProjectError
from src.rundir.checkpoint import read_checkpoint

CHOSEN = {  # runs whose words are not those of the default
    "ae": ["model=ae", "network=mlp_autoencoder", "network.encoder.hidden=[16]"],
    "vae": ["model=vae", "network=mlp_autoencoder", "model.latent_dim=3", "beta=linear"],
    "ddpm": [
        "network=mlp",
        "network.hidden=16",
        "schedule=linear",
        "schedule.num_timesteps=20",
        "sampler.num_steps=5",
    ],
}
STARTS = ("ckpt_path", "init_from")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(cli, small, place):
    """A run of each model by name, trained once."""
    for name, words in CHOSEN.items():
        few = [*small, *words, "trainer.max_steps=2", "callback.generation=null"]
        if not (place / name).exists():
            done = cli("train", *few, "~callback.grid", f"hydra.run.dir={place / name}")
            assert done.code == 0, done.err
    return {name: place / name for name in CHOSEN}


def recorded(run):
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize("name", CHOSEN)
def test_a_run_goes_on_with_nothing_typed_but_the_change(cli, runs, tmp_path, name):
    words = [f"ckpt_path={runs[name]}", "trainer.max_steps=4", "logger=csv"]
    done = cli("train", *words, f"hydra.run.dir={tmp_path / 'on'}")
    assert done.code == 0, done.err
    before, after = recorded(runs[name]), recorded(tmp_path / "on")
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"trainer", "ckpt_path", "run_dir", "provenance", "logger"}
    of_machine = {key: after["trainer"][key] for key in OF_MACHINE}
    assert after["trainer"] | {"max_steps": 2} == before["trainer"] | of_machine
    assert json.loads((tmp_path / "on" / "metrics.json").read_text())["step"] == 4
    assert "last.ckpt" in {path.name for path in (tmp_path / "on" / "checkpoints").iterdir()}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_directory_goes_on_by_its_name_alone(cli, runs, tmp_path, name):
    run = shutil.copytree(runs[name], tmp_path / "own")
    done = cli("train", f"hydra.run.dir={run}", "resume=auto", "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert json.loads((run / "metrics.json").read_text())["step"] == 3
    assert recorded(run)["model"] == recorded(runs[name])["model"]
    assert recorded(run)["logger"] == recorded(runs[name])["logger"]


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("lone", [False, True], ids=["run", "checkpoint"])
def test_weights_alone_with_another_rate(cli, runs, tmp_path, name, lone):
    source = runs[name]
    if lone:
        source = shutil.copy(runs[name] / "checkpoints" / "last.ckpt", tmp_path / "lone.ckpt")
    words = [f"init_from={source}", "optimizer.lr=1e-5", "trainer.max_steps=1", "logger=csv"]
    done = cli("train", *words, f"hydra.run.dir={tmp_path / 'new'}")
    assert done.code == 0, done.err
    after = recorded(tmp_path / "new")
    assert after["optimizer"]["lr"] == 1e-5
    assert after["model"] == recorded(runs[name])["model"]


def test_what_must_stay_is_refused_by_its_name(cli, runs, tmp_path):
    place = f"hydra.run.dir={tmp_path / 'no'}"
    done = cli("train", f"ckpt_path={runs['vae']}", "model.latent_dim=5", "logger=csv", place)
    assert done.code == 2
    assert "model.latent_dim 3 -> 5" in done.err
    done = cli("train", f"init_from={runs['vae']}", "model.latent_dim=5", "logger=csv", place)
    assert done.code == 4
    assert "model.latent_dim 3 -> 5" in done.err
    assert not (tmp_path / "no").exists()


def test_a_group_of_the_run_can_be_replaced(cli, runs, tmp_path):
    words = [f"init_from={runs['ddpm']}", "sampler=heun", "sampler.num_steps=3", "--cfg", "job"]
    done = cli("train", *words)
    assert done.code == 0, done.err
    cfg = yaml.safe_load(done.out)
    assert cfg["sampler"] == {
        "_target_": "src.sampler.heun.heun",
        "_partial_": True,
        "num_steps": 3,
    }
    assert cfg["model"]["sampler"] == "${sampler}"
    assert cfg["network"]["hidden"] == 16


def test_an_override_below_a_reference_sets_what_is_referred_to(cli, runs):
    done = cli("train", f"init_from={runs['ddpm']}", "model.sampler.num_steps=7", "--cfg", "job")
    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["sampler"]["num_steps"] == 7


def test_words_that_add_and_take_away_can_be_typed_again(cli, runs, tmp_path):
    run = shutil.copytree(runs["ddpm"], tmp_path / "own")
    words = [
        "~callback.grid",
        "+network.dropout=0.0",
        "+schedule=linear",
        "schedule.num_timesteps=20",
    ]
    done = cli("train", *words, f"hydra.run.dir={run}", "resume=auto", "trainer.max_steps=3")
    assert done.code == 0, done.err


def test_whoever_names_a_model_describes_the_run(runs):
    assert named_run([f"init_from={runs['vae']}"]).path == runs["vae"]
    for word in ("model=vae", "experiment=digits_vae", "sweep=study"):
        assert named_run([f"init_from={runs['vae']}", word]) is None
    assert on_run("train", ["init_from=/nowhere"], dict) == ("train", ["init_from=/nowhere"])


def test_sampling_and_evaluation_work_on_the_run(cli, runs, tmp_path):
    out = f"output={tmp_path / 'samples'}"
    done = cli("sample", f"ckpt_path={runs['ddpm']}", "num_samples=2", "sampler=ddpm", out)
    assert done.code == 0, done.err
    assert (tmp_path / "samples" / "samples.npz").exists()
    done = cli("sample", f"ckpt_path={runs['ddpm']}", "num_samples=2", "network.hidden=8", out)
    assert done.code == 2
    assert "network.hidden 16 -> 8: of the run itself sampler, features" in done.err
    done = cli("sample", f"ckpt_path={runs['vae']}", "sampler=heun", out)
    assert done.code == 2
    assert "sampler" in done.err


def test_a_part_of_another_package_is_refused_before_it_trains(cli, small, tmp_path):
    word = "+callback.fault={_target_:faults.Fault,step:99,where:batch_end}"
    place = f"hydra.run.dir={tmp_path / 'run'}"
    done = cli("train", *small, "model=ae", word, place)
    assert done.code == 2
    assert "trusted_packages=[faults]" in done.err
    assert not (tmp_path / "run").exists()
    done = cli("train", *small, "model=ae", word, place, "trusted_packages=[faults]")
    assert done.code == 0, done.err
    again = ["train", place, "resume=auto", "trainer.max_steps=9"]
    done = cli(*again)
    assert done.code == 4
    assert "wants to build 'faults.Fault'" in done.err
    assert cli(*again, "trusted_packages=[faults]").code == 0


@pytest.mark.parametrize(
    ("path", "node"),
    [
        (("optimizer",), {"_target_": "os.system", "_partial_": True}),
        (("callback", "x"), {"_target_": "shutil.rmtree", "path": "/tmp/none"}),
        (("lr_schedule",), {"_target_": "builtins.exec"}),
        (("trainer", "profiler"), {"_target_": "subprocess.Popen", "args": "true"}),
    ],
)
def test_a_stranger_s_run_builds_nothing_of_its_own(cli, runs, tmp_path, path, node):
    theirs = shutil.copytree(runs["vae"], tmp_path / "theirs")
    config = recorded(theirs)
    holder = config
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = node
    (theirs / "config.yaml").write_text(yaml.safe_dump(config))
    for start in STARTS:
        done = cli("train", f"{start}={theirs}", f"hydra.run.dir={tmp_path / 'mine'}")
        assert done.code == 4
        assert f"wants to build '{node['_target_']}'" in done.err
        assert len(done.err.strip().splitlines()) == 1


def test_places_of_a_stranger_are_not_written_to(cli, runs, tmp_path):
    theirs = shutil.copytree(runs["vae"], tmp_path / "theirs")
    config = recorded(theirs)
    away = str(tmp_path / "away")
    config["callback"]["checkpoint"]["dirpath"] = away
    config["callback"]["finite"]["dirpath"] = away
    config["trainer"]["default_root_dir"] = away
    config["run_dir"] = config["cache_dir"] = away
    (theirs / "config.yaml").write_text(yaml.safe_dump(config))
    words = [f"ckpt_path={theirs}", "trainer.max_steps=3", "logger=csv"]
    done = cli("train", *words, f"hydra.run.dir={tmp_path / 'mine'}")
    assert done.code == 0, done.err
    assert not (tmp_path / "away").exists()


def test_a_checkpoint_has_the_references_of_the_run(runs):
    config = read_checkpoint(runs["vae"])["config"]
    assert config == without_references(recorded(runs["vae"]))
    assert (CONF / "train.yaml").exists()


@pytest.fixture
def before(tmp_path):
    """A run of before 2026-11: its configuration holds copies where references stand today."""
    return shutil.copytree(Path(__file__).parent / "run_of_before", tmp_path / "before")


def test_a_run_of_before_goes_on_and_is_sampled(cli, before, tmp_path):
    place = f"hydra.run.dir={tmp_path / 'on'}"
    done = cli("train", f"ckpt_path={before}", "trainer.max_steps=6", "logger=csv", place)
    assert done.code == 0, done.err
    assert recorded(tmp_path / "on")["model"]["encoder"] == "${network.encoder}"
    done = cli("train", f"hydra.run.dir={before}", "resume=auto", "trainer.max_steps=6")
    assert done.code == 0, done.err
    assert json.loads((before / "metrics.json").read_text())["step"] == 6
    done = cli("sample", f"ckpt_path={before}", "num_samples=2", f"output={tmp_path / 'out'}")
    assert done.code == 0, done.err
    assert load_model(before).latent_dim == 2


def test_a_run_of_before_compares_with_one_of_today(cli, small, before, tmp_path):
    """They differ in what is really another, and in nothing else."""
    config = recorded(before)
    cut = "network.encoder.hidden=[4]", "network.decoder.hidden=[4]", "model.latent_dim=2"
    words = ["model=vae", "network=mlp_autoencoder", *cut, "callback=[finite,checkpoint]"]
    limits = ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    words += [*limits, "trainer.max_steps=4", "trainer=cpu", "features=pixels", "logger=csv"]
    done = cli("train", *words, "optimizer.lr=0.5", f"hydra.run.dir={tmp_path / 'today'}")
    assert done.code == 0, done.err
    then, now = run_settings(config), run_settings(recorded(tmp_path / "today"))
    assert {name for name in then.keys() | now if then.get(name) != now.get(name)} == {
        "optimizer.lr"
    }
    done = cli("compare", str(before), str(tmp_path / "today"))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("typed", "set_"),
    [
        ("model.sampler.num_steps=5", "sampler.num_steps=5"),
        ("model.encoder.hidden=[3]", "network.encoder.hidden=[3]"),
        ("callback.generation.features.seed=1", "features.seed=1"),
        ("network.decoder.norm=batch", "network.decoder.norm=batch"),
        ("sampler.num_steps=5", "sampler.num_steps=5"),
        ("model.sampler", "model.sampler"),
    ],
)
def test_words_below_a_reference_set_what_it_refers_to(typed, set_):
    assert as_referred(typed) == set_


@pytest.mark.slow
def test_a_multirun_on_a_run(cli, runs, tmp_path):
    words = [f"init_from={runs['vae']}", "seed=0,1", "optimizer.lr=1e-5", "trainer.max_steps=1"]
    done = cli("train", "--multirun", *words, "logger=csv", f"hydra.sweep.dir={tmp_path / 'all'}")
    assert done.code == 0, done.err
    for number in (0, 1):
        config = recorded(tmp_path / "all" / f"{number}-vae-digits")
        assert config["seed"] == number
        assert config["model"]["latent_dim"] == 3
        assert config["optimizer"]["lr"] == 1e-5


def based(entry, *words):
    """Name of the primary configuration, or "" and why there is none."""
    try:
        return on_run(entry, [*words], dict)[0], ""
    except ProjectError as error:
        return "", str(error)


ODD = [7, [], None, "x", "{_target_: os.system, command: 'true'}", {}, {7: 8}]
BRINGS = {"defaults": [{"/network@_global_.hydra.job_logging": "of_run"}, "_self_"]}
NODES = ["dataset", "trainer", "model", "callback", "features", "optimizer", "network", "seed"]


@pytest.mark.parametrize("entry", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("node", NODES)
def test_an_odd_node_of_a_stranger_is_refused_or_harmless(before, entry, node):
    config = recorded(before)
    for odd in (*ODD, (config[node] if isinstance(config[node], dict) else {}) | BRINGS):
        (before / "config.yaml").write_text(yaml.safe_dump(config | {node: odd}))
        _, refusal = based(entry, f"init_from={before}")
        assert len(refusal.splitlines()) <= 1
        if refusal:
            continue
        stored = ConfigStore.instance().repo
        held = stored.get(node, {}).get("of_run.yaml")
        assert held is None or (OmegaConf.is_dict(held.node) and "defaults" not in held.node)


@pytest.mark.parametrize("key", ["hydra", "defaults", "a@b", "/tmp", "..", "", "x" * 300, 7, None])
@pytest.mark.parametrize("own", [False, True])
def test_what_is_no_setting_of_a_run_is_not_taken(before, key, own):
    config = recorded(before) | {key: {"job_logging": {"version": 1}}}
    (before / "config.yaml").write_text(yaml.safe_dump(config))
    words = [f"hydra.run.dir={before}", "resume=auto"] if own else [f"init_from={before}"]
    name, refusal = based("train", *words)
    assert len(refusal.splitlines()) <= 1
    if refusal:
        return
    primary = OmegaConf.to_container(ConfigStore.instance().repo[f"{name}.yaml"].node)
    conf = yaml.safe_load((CONF / "train.yaml").read_text())
    assert primary["hydra"] == conf["hydra"]
    assert primary.keys() <= conf.keys()


def test_trust_is_typed_not_set_in_a_file(cli, small, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrusted_packages: [faults]\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    words = ["--config-dir", str(tmp_path / "own"), "experiment=mine", "model=ae"]
    done = cli("train", *words, *small, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2
    assert "trusted_packages=['faults']: is typed on the command line" in done.err
