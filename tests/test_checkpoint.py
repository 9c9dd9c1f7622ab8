"""Checkpoints: whole or absent, safe to read, and a model back from them."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from src.errors import CheckpointError, StorageError
from src.files import atomic_path, content_hash, write_json
from src.rundir.checkpoint import load_model, read_checkpoint, restore
from src.rundir.checkpoint_io import AtomicCheckpointIO
from src.train import train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of one step, trained once for this file."""
    from conftest import CONF
    from hydra import compose, initialize_config_dir

    directory = tmp_path_factory.mktemp("checkpoint") / "run"
    words = [
        f"run_dir={directory}",
        "trainer=debug",
        "logger=csv",
        "callback.generation=null",
        "callback.grid=null",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", words))
    return directory


def changed(run_dir, tmp_path, change):
    """The run's checkpoint with one thing changed, as a file."""
    content = read_checkpoint(run_dir)
    change(content)
    torch.save(content, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_load_model_gives_the_averaged_weights(run_dir):
    checkpoint, model = read_checkpoint(run_dir), load_model(run_dir)
    assert checkpoint["ema"].keys() == dict(model.named_parameters()).keys()
    raw = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    assert all(torch.equal(p, checkpoint["ema"][n]) for n, p in model.named_parameters())
    assert any(not torch.equal(p, raw[n]) for n, p in model.named_parameters())


def test_a_checkpoint_holds_its_configuration_as_plain_values(run_dir):
    config = read_checkpoint(run_dir)["config"]

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else isinstance(value, str | int | float | None)
        )

    assert plain(config)
    assert config["model"]["schedule"]["num_timesteps"] == 1000
    assert config["provenance"]["version"]


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_pickled_code_is_refused_and_not_run(run_dir, tmp_path):
    path = changed(run_dir, tmp_path, lambda c: c.update(extra=Evil(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match="refused"):
        load_model(path)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_model(tmp_path / "plain.ckpt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "src.files.write_text",
        "src.model.vae.torch.load",
        "src.model.diffusion.randn",
        "src.model",
        7,
    ],
)
def test_only_canonical_parts_of_models_are_built(run_dir, tmp_path, target):
    path = changed(
        run_dir, tmp_path, lambda c: c["config"]["model"]["network"].update(_target_=target)
    )
    with pytest.raises(CheckpointError, match="refused, it wants to build"):
        load_model(path)


def test_unresolved_values_are_refused(run_dir, tmp_path):
    path = changed(
        run_dir, tmp_path, lambda c: c["config"]["model"].update(clip_denoised="${oc.env:HOME}")
    )
    with pytest.raises(CheckpointError, match="unresolved"):
        load_model(path)


def test_a_flipped_bit_is_found(run_dir, tmp_path):
    data = bytearray((run_dir / "checkpoints" / "last.ckpt").read_bytes())
    with zipfile.ZipFile(run_dir / "checkpoints" / "last.ckpt") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "flipped.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_found(run_dir, tmp_path, share):
    data = (run_dir / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "short.ckpt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"short.ckpt"):
        read_checkpoint(tmp_path / "short.ckpt")


def test_weights_of_another_shape_are_told_in_one_line(run_dir, tmp_path):
    path = changed(run_dir, tmp_path, lambda c: c["config"]["model"]["network"].update(channels=16))
    with pytest.raises(CheckpointError, match="another model") as refused:
        load_model(path)
    assert "\n" not in str(refused.value)
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not written by this project"):
        load_model(tmp_path / "foreign.ckpt")


def test_a_config_that_cannot_be_built_is_told_in_one_line(run_dir):
    checkpoint = read_checkpoint(run_dir)
    node = checkpoint["config"]["model"] | {"colour": "red"}
    with pytest.raises(CheckpointError, match="cannot be built"):
        restore(node, checkpoint)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(StorageError, match="cannot write"):
        write_json(target / "below a file", {})


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        AtomicCheckpointIO({}).save_checkpoint({"a": 1}, tmp_path / "file" / "last.ckpt")


def test_content_hash_keeps_parts_apart():
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash("ab") == content_hash(b"ab")
    assert Path(content_hash("x")).name.isalnum()
