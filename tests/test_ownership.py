"""Whose run it is, and what places in a stranger's configuration are worth."""

from __future__ import annotations

import shutil
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from src.config.ownership import is_own, signed, without_places
from src.config.references import with_references, without_references
from src.errors import ConfigError
from src.rundir.provenance import plain


@pytest.fixture
def key(tmp_path, monkeypatch):
    file = tmp_path / "keys" / "key"
    monkeypatch.setenv("GENBENCH_KEY_FILE", str(file))
    return file


@pytest.fixture
def config(composed, key):
    return plain(composed("model=vae"))


def test_the_signature_is_of_what_is_said_not_of_how(config):
    assert is_own(config)
    assert is_own(without_references(config))
    assert is_own(with_references(config))
    assert is_own(yaml.safe_load(yaml.safe_dump(config)))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["dataset"].update(root="/theirs"),
        lambda config: config["model"].update(latent_dim=7),
        lambda config: config.update(more=1),
        lambda config: config["provenance"].update(signature="0" * 64),
        lambda config: config["provenance"].update(signature="é"),
        lambda config: config["provenance"].pop("signature"),
        lambda config: config.update(provenance=7),
        lambda config: config.pop("provenance"),
    ],
)
def test_what_was_changed_is_no_run_of_ours(config, change):
    change(config)
    assert not is_own(config)


def test_another_user_has_another_key(config, tmp_path, monkeypatch, key):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [file.name for file in key.parent.iterdir()] == ["key"]
    monkeypatch.setenv("GENBENCH_KEY_FILE", str(tmp_path / "another"))
    assert not is_own(config)


@pytest.mark.parametrize("content", [b"", b"short"])
def test_without_a_key_nothing_is_signed(composed, config, key, content):
    key.write_bytes(content)
    assert "signature" not in signed({"provenance": {}})["provenance"]
    assert not is_own(config)


def test_places_of_conf_and_typed_ones_count(monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    for root in (None, "data", "???"):
        config = {"dataset": {"root": root}, "optimized_metric": "val/loss"}
        assert without_places(config, set(), "ckpt_path=x", True) == config
    config = {"dataset": {"root": "/theirs"}, "features": {"weights": "http://theirs"}}
    with pytest.raises(ConfigError, match="type dataset.root=... with a place that you trust"):
        without_places(config, {"features.weights"}, "ckpt_path=x", True)
    typed = {"features", "dataset.root"}
    assert without_places(config, typed, "ckpt_path=x", True) == config
    nothing = {"dataset": {"root": None}, "features": {"weights": None}}
    assert without_places(config, set(), "ckpt_path=x", False) == nothing


PLACES = [
    {"callback": {"x": {"dirpath": "away"}}},
    {"callback": {"x": ["/etc/passwd"]}},
    {"metric": {"measures": {"a": {"file": "~/x"}}}},
    {"model": {"network": {"anything": "s3://theirs/x"}}},
    {"features": {"path": "../../x"}},
]


@pytest.mark.parametrize("config", PLACES, ids=str)
def test_a_place_is_seen_by_its_name_or_its_look(config):
    with pytest.raises(ConfigError, match="was not made by you"):
        without_places(config, set(), "ckpt_path=x", True)


@pytest.fixture
def asked():
    """A server on this machine, and the requests that reach it."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("lone", [False, True], ids=["run", "checkpoint"])
def test_a_stranger_s_run_asks_no_address_and_makes_no_folder(cli, tmp_path, asked, lone):
    address, requests = asked
    theirs = shutil.copytree(Path(__file__).parent / "run_of_before", tmp_path / "theirs")
    for root in (f"{address}/x-{{0..3}}.tar", str(tmp_path / "made")):
        config = yaml.safe_load((theirs / "config.yaml").read_text())
        config["dataset"]["root"] = config["dataset"]["load"]["root"] = root
        config["dataset"]["load"] |= {"_target_": "src.dataset.mnist.load"}
        (theirs / "config.yaml").write_text(yaml.safe_dump(config))
        source = theirs / "checkpoints" / "step-00000004.ckpt"
        content = torch.load(source, weights_only=True) | {"config": config}
        for file in (source, tmp_path / "lone.ckpt"):
            torch.save(content, file)
        named = tmp_path / "lone.ckpt" if lone else theirs
        for entry in ("evaluate", "train"):
            out = {"evaluate": "output", "train": "hydra.run.dir"}[entry]
            done = cli(entry, f"ckpt_path={named}", "logger=[]", f"{out}={tmp_path / 'out'}")
            assert done.code == 2
            assert "was not made by you, and says dataset.root=" in done.err
            assert len(done.err.strip().splitlines()) == 1
        done = cli("sample", f"ckpt_path={named}", "num_samples=2", f"output={tmp_path}/s")
        assert done.code == 0, done.err
        shutil.rmtree(tmp_path / "s")
    assert not requests
    assert not (tmp_path / "made").exists()
