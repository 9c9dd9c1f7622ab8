"""Hostile checkpoint files: refused in one line with exit code 4; nothing in them runs."""

import copy
import io
import os
import random
import re
import subprocess
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import CONF, ROOT
from omegaconf import OmegaConf
from test_untrusted import EVIL, circle, doubling
from torch import nn

from src.config.build import build
from src.errors import CheckpointError, ConfigError
from src.evaluation import reference
from src.features import classifier
from src.parallel.sampling import Shards
from src.rundir.checkpoint import load_model, read_checkpoint

SMALL = [
    "network=mlp_autoencoder",
    "network.encoder.hidden=[8]",
    "network.decoder.hidden=[8]",
    "features=pixels",
]


@pytest.fixture(scope="module")
def written():
    """What a small run writes, before it has learned anything."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["model=vae", "run_dir=x", *SMALL])
    weights = {f"model.{name}": value for name, value in build(cfg, "model").state_dict().items()}
    return {
        "state_dict": weights,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "global_step": 3,
    }


@pytest.fixture
def content(written):
    return copy.deepcopy(written)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that must not appear.

    ``EVIL`` is importable, also for other processes, and would write it.
    """
    marker = tmp_path / "marker"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / f"{EVIL}.py").write_text(
        f"open({str(marker)!r}, 'w')\ndef run(*a, **k): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "evil")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "evil"))
    yield marker
    assert not marker.exists()
    assert EVIL not in sys.modules


def refused(content, path, message):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_weights_are_data_whatever_they_are(content, tmp_path):
    content["state_dict"]["model.encoder.layers.1.weight"].fill_(float("nan"))
    content["ema"] = {
        name.removeprefix("model."): value for name, value in content["state_dict"].items()
    }
    torch.save(content, tmp_path / "it.ckpt")
    assert load_model(tmp_path / "it.ckpt").encoder.layers[1].weight.isnan().all()


CONTENTS = {
    "expanded": ({"x": torch.ones(1).expand(10**12)}, "bytes of tensors in a file of"),
    "in the optimiser": (
        {"optimizer_states": [{"state": {0: (torch.ones(1).expand(10**9),)}}]},
        "bytes of tensors",
    ),
    "shared": ({"x": [torch.ones(10_000)] * 1000}, "bytes of tensors"),
    "sparse": ({"x": torch.ones(2, 2).to_sparse()}, "kind that is not trained"),
    "meta": ({"x": torch.ones(2, 2, device="meta")}, "kind that is not trained"),
    "circle": ({"x": circle()}, "levels"),
    "doubling": ({"x": doubling(1, 25)}, "holds more than"),
    "no step": ({"global_step": "3"}, "after which step"),
    "list": ({"state_dict": [1]}, "not tensors with names"),
    "number": ({"state_dict": {"model.a": 1}}, "not tensors with names"),
    "names": ({"state_dict": {1: torch.ones(1)}}, "not tensors with names"),
    "averages": ({"ema": None}, "not tensors with names"),
    "type": ({"ema": {"to_posterior.bias": torch.ones(32, dtype=torch.float64)}}, "another model"),
    "control characters": ({"ema": {"\x1b[2J\n": torch.ones(1)}}, r"another model.*'\\x1b\[2J\\n'"),
    "long name": ({"ema": {"a" * 10**5: torch.ones(1)}}, "another model"),
    "module": ({"x": nn.Linear(1, 1)}, "refused, it holds more than tensors and plain values"),
    "configuration": ({"config": 7}, "refused, it describes no model"),
    "no model": (
        {"config": {"model": {"_target_": "src.beta.Constant"}}},
        "describes 'Constant', which is no model",
    ),
    "grammar": (
        {"provenance": {"overrides": ["${a:" + "[" * 2000]}},
        "refused, its config is malformed",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_all_content_is_ordinary(content, tmp_path, name):
    change, message = CONTENTS[name]
    refused(
        content | ({"config": content["config"] | change} if name == "grammar" else change),
        tmp_path / "it",
        message,
    )


@pytest.mark.parametrize("hidden", [[16_384] * 40, [2] * 5000, [10**12]])
def test_a_model_is_no_larger_than_its_weights(content, tmp_path, hidden):
    """40 layers of 16,384 squared would be 40 GB."""
    content["config"]["model"]["encoder"]["hidden"] = hidden
    torch.save(content, tmp_path / "it.ckpt")
    with pytest.raises((CheckpointError, ConfigError), match="describes more than|at most"):
        load_model(tmp_path / "it.ckpt")


class Payload:
    """Imports the evil module when it is unpickled."""

    def __reduce__(self):
        return __import__, (EVIL,)


def rewritten(data, compression=zipfile.ZIP_STORED, change=lambda data: data):
    """An archive with the same entries, the pickled one changed, under the right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            part = old.read(entry)
            new.writestr(
                entry.filename, change(part) if entry.filename.endswith("data.pkl") else part
            )
    return out.getvalue()


def saved(content, **settings):
    out = io.BytesIO()
    torch.save(content, out, **settings)
    return out.getvalue()


def test_files_that_are_something_else(content, tmp_path, marker, recwarn):
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), script)
    recwarn.clear()
    files = {
        "payload": saved(content | {"x": Payload()}),
        "script": script.getvalue(),
        "legacy": saved(Payload(), _use_new_zipfile_serialization=False),
        "bomb": rewritten(saved(content | {"x": torch.zeros(10**6)}), zipfile.ZIP_DEFLATED),
        "locked": re.sub(
            rb"(?s)(PK\x01\x02....).", lambda found: found[1] + b"\x01", rewritten(saved(content))
        ),
        "text": b"<html>",
        "empty": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}: (refused|not a checkpoint)"):
            read_checkpoint(tmp_path / name)
    assert len(files["bomb"]) < 30_000
    assert not recwarn.list


def test_a_changed_byte_never_gives_another_kind_of_error(content, tmp_path):
    data = saved(content)
    random.seed(0)

    def change(pickled):
        pickled = bytearray(pickled)
        for _ in range(random.choice([1, 2, 10])):
            pickled[random.randrange(len(pickled))] = random.randrange(256)
        return bytes(pickled)

    for number in range(300):
        damaged = rewritten(data, change=change) if number % 3 else change(data)
        (tmp_path / "it.ckpt").write_bytes(damaged)
        with suppress(CheckpointError, ConfigError):
            load_model(tmp_path / "it.ckpt")


def test_lightning_builds_nothing_from_strings(content, tmp_path, marker):
    """``_instantiator`` and ``_class_path`` ran code before Lightning 2.6.6.

    We read no hyper-parameters at all.
    """
    hidden = {"_instantiator": f"{EVIL}.run", "_class_path": f"{EVIL}.X"}
    torch.save(
        content | {"hyper_parameters": hidden, "hparams_name": "kwargs"}, tmp_path / "it.ckpt"
    )
    assert load_model(tmp_path / "it.ckpt").latent_dim == 16


def test_caches_and_shards_run_nothing(tmp_path, marker, caplog):
    evil = np.array([Payload()], dtype=object)
    np.savez(tmp_path / "000000000.npz", images=evil, features=evil, mean=evil, cov=evil, root=evil)
    assert Shards(tmp_path).load(range(2)) is None
    assert reference._load(tmp_path / "000000000.npz") is None
    torch.save({"weights": Payload(), "hash": ""}, tmp_path / "classifier.pt")
    assert not classifier._load(nn.Linear(1, 1), tmp_path / "classifier.pt")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.ckpt", "https://a/x", "s3://a/x", "file:///etc/passwd"]
)
def test_addresses_are_refused(address):
    with pytest.raises(CheckpointError, match="addresses are refused"):
        load_model(address)


COMMANDS = [
    ("sample", "ckpt_path"),
    ("evaluate", "ckpt_path"),
    ("train", "init_from"),
    ("train", "ckpt_path"),
]


@pytest.mark.parametrize(("entry", "setting"), COMMANDS)
def test_every_command_refuses(cli, content, tmp_path, marker, entry, setting):
    content["config"]["metric"]["measures"]["fid"]["_target_"] = f"{EVIL}.run"
    torch.save(content, tmp_path / "it.ckpt")
    done = cli(
        entry, f"{setting}=it.ckpt", *([] if entry == "train" else ["output=out"]), "trainer=cpu"
    )
    assert done.code == 4, done
    assert done.err.startswith(f"error: {setting}=")
    assert (
        f"it.ckpt: refused, it wants to build '{EVIL}.run', which is not a part of metric"
        in done.err
    )
    assert done.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"evil", "it.ckpt"}


@pytest.mark.slow
def test_a_process_of_its_own_refuses(content, tmp_path, marker):
    torch.save(content | {"x": Payload()}, tmp_path / "it.ckpt")
    words = [sys.executable, "-m", "src.evaluate", f"ckpt_path={tmp_path}/it.ckpt"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 4, done
    assert "refused, it holds more than tensors and plain values" in done.stderr
    assert done.stderr.count("\n") == 1
