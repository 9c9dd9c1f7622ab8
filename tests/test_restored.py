"""A checkpoint whose state of the training is odd: one line with exit code 4, no traceback."""

import copy
import shutil

import pytest
import torch


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps, trained once, and the content of its checkpoint."""
    made = {}

    def get(cli, words):
        if not made:
            made["place"] = tmp_path_factory.mktemp("runs") / "run"
            done = cli("train", *words, f"hydra.run.dir={made['place']}")
            assert done.code == 0, done.err
            path = made["place"] / "checkpoints/last.ckpt"
            made["content"] = torch.load(path, weights_only=True)
        return made["place"], copy.deepcopy(made["content"])

    return get


@pytest.fixture
def words(small):
    network = ["network=mlp_autoencoder", "network.encoder.hidden=[8]"]
    length = ["trainer.max_steps=2", "trainer.limit_train_batches=1.0"]
    parts = ["callback.grid=null", "callback.generation=null"]
    return [*small, "model=vae", *network, "network.decoder.hidden=[8]", *parts, *length]


@pytest.fixture
def resumed(cli, begun, words, tmp_path):
    """Change the content of a checkpoint, and go on from it for a step."""

    def go_on(change):
        place, content = begun(cli, words)
        change(content)
        run = tmp_path / "run"
        shutil.copytree(place, run)
        for path in (run / "checkpoints").glob("*.ckpt"):
            path.unlink()
        torch.save(content, run / "checkpoints/step-00000002.ckpt")
        return cli("train", *words, "trainer.max_steps=3", "resume=auto", f"hydra.run.dir={run}")

    return go_on


def test_a_sound_state_goes_on(resumed):
    assert resumed(lambda content: None).code == 0


def at(*path, value):
    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


CHECKPOINT, FINITE, EMA, THROUGHPUT = "Checkpoint", "Finite", "EMA", "Throughput"
LOOP = ("loops", "fit_loop")
ODD = {
    "best": at("callbacks", CHECKPOINT, "best", value="x"),
    "validates": at("callbacks", CHECKPOINT, "validates", value=[1]),
    "seconds": at("callbacks", CHECKPOINT, "seconds", value=None),
    "metrics": at("callbacks", CHECKPOINT, "metrics", value={"a": "x"}),
    "names": at("callbacks", CHECKPOINT, "metrics", value={1: 1.0}),
    "half": at("callbacks", CHECKPOINT, value={"best": 1.0}),
    "no names": at("callbacks", CHECKPOINT, value=[1]),
    "list": at("callbacks", value=[1]),
    "skipped": at("callbacks", FINITE, value={"skipped": "x"}),
    "spent": at("callbacks", THROUGHPUT, "seconds", value={}),
    "steps": at("callbacks", THROUGHPUT, "steps", value=-1),
    "version": at("pytorch-lightning_version", value=7),
    "position": at(*LOOP, "state_dict", value={"combined_loader": [{"epoch": "x", "done": 1}]}),
    "epoch": at(*LOOP, "epoch_progress", "total", "ready", value="x"),
    "huge": at(*LOOP, "epoch_progress", "total", "ready", value=10**30),
    "no loops": at("loops", value={}),
    "loops": at("loops", value=3),
    "no optimiser": at("optimizer_states", value=[]),
    "optimiser": at("optimizer_states", value="x"),
    "rate": at("optimizer_states", 0, "param_groups", 0, "lr", value="x"),
    "betas": at("optimizer_states", 0, "param_groups", 0, "betas", value=(0.9,)),
    "groups": at("optimizer_states", 0, "param_groups", value=[]),
    "moments": at("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(3, 7)),
    "whole numbers": at("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(16).int()),
    "moment": at("optimizer_states", 0, "state", 0, value=5),
    "beyond": at("optimizer_states", 0, "state", 999, value={}),
    "schedule": at("lr_schedulers", 0, "base_lrs", value="x"),
    "schedules": at("lr_schedulers", value=[]),
    "last epoch": at("lr_schedulers", 0, "last_epoch", value=None),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_state_is_refused_in_one_line(resumed, change):
    done = resumed(change)
    assert done.code == 4, done
    assert "its state of the training does not fit" in done.err
    assert done.err.count("\n") == 1


def test_what_a_schedule_does_not_know_is_not_made_an_attribute(resumed):
    assert resumed(at("lr_schedulers", 0, "step", value=5)).code == 0
