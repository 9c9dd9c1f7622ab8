"""Shards on the disk and behind a server: the same batches on any ranks, clear refusals."""

import base64
import gzip
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.dataset import ranges, shards
from src.dataset.base import SPLITS
from src.dataset.webdataset import _expand, load, write_index
from src.errors import ConfigError, DataError
from src.noise import randn
from src.training.data import ImageDataModule


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_shard(path, numbers, labels=True, more=()):
    """A shard of 8x8 images; ``more`` are further files, name -> content."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image = io.BytesIO()
            Image.fromarray(pixels(number)).save(image, "PNG")
            files = {f"a.b/{number:05}.png": image.getvalue(), f"a.b/{number:05}.json": b"{}"}
            for name, content in (
                files | ({f"a.b/{number:05}.cls": b"%d\n" % number} if labels else {})
            ).items():
                add(tar, name, content)
        for name, content in more:
            add(tar, name, content)
    return path


def add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three shards with an index each, 60 images, no split of their own."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        write_index(
            write_shard(folder / f"cats-{shard:03}.tar", range(20 * shard, 20 * shard + 20))
        )
    return folder


class Server(SimpleHTTPRequestHandler):
    """Serves ranges of files, as object stores do; ``fail`` requests get an error first."""

    fail, ranges, requests = 0, True, 0

    def do_GET(self):
        own = type(self)
        own.requests += 1
        path = self.translate_path(self.path)
        if own.fail > 0 or not os.path.isfile(path):
            own.fail -= 1
            return self.send_error(503 if own.fail >= 0 else 404)
        content = Path(path).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and own.ranges:
            content = content[int(asked[1]) : int(asked[2] or len(content)) + 1]
        self.send_response(206 if asked and own.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def server(place, monkeypatch):
    """(address of the shards, its handler)."""
    monkeypatch.setattr(ranges, "WAITS", (0.01, 0.01))
    handler = type("Handler", (Server,), {})
    http = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *words: handler(*words, directory=str(place))
    )
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", handler
    http.shutdown()
    http.server_close()


def numbers(data):
    return data.labels.tolist()


def test_samples_are_read_with_their_labels_and_the_splits_are_a_partition(place):
    parts = {split: load(str(place), split, image_size=8) for split in SPLITS}
    assert sorted(sum(map(numbers, parts.values()), [])) == list(range(60))
    for data in parts.values():
        images = data.images[torch.arange(len(data))]
        expected = torch.stack(
            [torch.from_numpy(pixels(number)).permute(2, 0, 1) for number in numbers(data)]
        )
        assert torch.equal(images, expected)
    assert len(parts["train"]) > 40


def test_an_index_changes_nothing_but_the_time(place, tmp_path):
    for shard in place.glob("*.tar"):
        (tmp_path / shard.name).symlink_to(shard)
    for split in SPLITS:
        with_index, without = (load(str(root), split, image_size=8) for root in (place, tmp_path))
        assert numbers(with_index) == numbers(without)
        assert (with_index.images.start == without.images.start).all()


def test_shards_named_after_a_split_are_that_split(tmp_path):
    for name, first in (("train-0", 0), ("train-1", 20), ("validation-0", 40), ("other-0", 60)):
        write_shard(tmp_path / f"{name}.tar", range(first, first + (10 if first >= 40 else 20)))
    parts = {split: numbers(load(str(tmp_path), split)) for split in SPLITS}
    assert parts["val"] == list(range(40, 50))
    assert sorted(parts["train"] + parts["test"]) == [*range(40), *range(60, 70)]
    assert parts["test"]
    some = load(f"{tmp_path}/{{train-{{0..1}},validation-0}}.tar", "train")
    assert numbers(some) == list(range(40))


def test_a_new_cut_into_shards_moves_no_sample_to_another_split(place, tmp_path):
    write_shard(tmp_path / "all.tar", random.Random(0).sample(range(60), 60))
    for split in SPLITS:
        assert sorted(numbers(load(str(tmp_path), split))) == sorted(
            numbers(load(str(place), split))
        )


@given(st.integers(0, 99), st.integers(0, 30), st.integers(1, 5))
def test_patterns_are_written_out_like_those_of_a_shell(first, more, digits):
    start = f"{first:0{digits}}"
    found = list(_expand(f"x{{{start}..{first + more}}}.{{a,b}}"))
    assert found == [
        f"x{n:0{len(start)}}.{end}" for n in range(first, first + more + 1) for end in "ab"
    ]


def drawn(batch):
    return randn((len(batch.x),), batch.noise.generators()).tolist()


def batches(root, workers=0, world=1, done=0):
    """All batches of the first epoch of every rank, as in the global batch: (numbers, noise, x)."""
    parts = []
    for rank in range(world):
        data = ImageDataModule(
            lambda split: load(root, split, 8), (3, 8, 8), 12, seed=3, num_workers=workers
        )
        data.trainer = SimpleNamespace(
            accumulate_grad_batches=1,
            world_size=world,
            global_rank=rank,
            limit_train_batches=1.0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        loader = data.train_dataloader()
        if done:
            loader.load_state_dict({"epoch": 0, "done": done})
        parts.append([(b.label.tolist(), drawn(b), b.x) for b in loader])
    steps = zip(*parts, strict=True)
    return [
        (
            sum((p[0] for p in step), []),
            sum((p[1] for p in step), []),
            torch.cat([p[2] for p in step]),
        )
        for step in steps
    ]


def assert_equal_batches(one, two):
    assert [step[:2] for step in one] == [step[:2] for step in two]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_batches_do_not_depend_on_place_workers_ranks_or_restarts(place, server):
    address, _ = server
    whole = batches(str(place))
    remote = f"{address}/cats-{{000..002}}.tar"
    assert len(whole) == len(load(str(place), "train")) // 12 >= 3
    assert_equal_batches(batches(remote), whole)
    assert_equal_batches(batches(remote, workers=2), whole)
    assert_equal_batches(batches(remote, workers=1, world=2), whole)
    assert_equal_batches(batches(remote, workers=2, done=2), whole[2:])


def test_only_what_a_batch_needs_is_fetched(server):
    address, handler = server
    images = load(f"{address}/cats-{{000..002}}.tar", "val", 8).images
    before = handler.requests
    images[[1, 0, 1]]
    assert handler.requests - before == 3


def test_a_server_that_fails_now_and_then_is_asked_again(server, place):
    address, handler = server
    images = load(f"{address}/cats-{{000..002}}.tar", "train", 8).images
    handler.fail = 3
    assert torch.equal(images[[0, 1, 2, 3]], load(str(place), "train", 8).images[[0, 1, 2, 3]])
    handler.fail = 1000
    with pytest.raises(DataError, match=rf"cannot read {address}/cats-000.tar: 503"):
        images[[0]]


def test_a_server_without_ranges_is_refused(server):
    address, handler = server
    images = load(f"{address}/cats-{{000..002}}.tar", "train", 8).images
    handler.ranges = False
    with pytest.raises(DataError, match=r"cats-000.tar: \d+ bytes came instead of \d+"):
        images[[0]]


def test_what_is_missing_at_a_url_is_named(server):
    address, handler = server
    before = handler.requests
    with pytest.raises(
        DataError, match=r"cats-003.tar.index.*python -m src.dataset.webdataset SHARD.tar"
    ):
        load(f"{address}/cats-{{000..003}}.tar", "train")
    assert handler.requests - before == 4, "what is not there is asked for once"
    with pytest.raises(DataError, match=r"cannot read http://127.0.0.1:9/x.tar.index"):
        load("http://127.0.0.1:9/x.tar", "train")
    with pytest.raises(
        ConfigError, match="dataset.root=ftp://host/x.tar: a path, or a URL of http"
    ):
        load("ftp://host/x.tar", "train")
    with pytest.raises(ConfigError, match="a path, or a URL"):
        load(f"simplecache::{address}/cats-000.tar", "train")


def cut(path, at=0.5):
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size) // 512 * 512])


def cut_less(path):
    cut(path, 0.7)


def doubled(path):
    path.write_bytes(2 * path.read_bytes())


def compress(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    "harm", [cut, cut_less, doubled, compress, lambda path: path.write_bytes(b"x" * 2000)]
)
def test_a_shard_that_is_none_is_named(tmp_path, harm):
    shard = write_shard(tmp_path / "a.tar", range(20))
    harm(shard)
    with pytest.raises(DataError, match=f"{shard}: not a sound .tar file"):
        load(str(tmp_path), "train")


def test_an_index_that_does_not_fit_is_named(tmp_path):
    shard = write_shard(tmp_path / "a.tar", range(20))
    write_index(shard)
    write_shard(shard, range(30))
    with pytest.raises(DataError, match="a.tar.index is of another shard"):
        load(str(tmp_path), "train")
    (tmp_path / "a.tar.index").write_bytes(b"nothing")
    with pytest.raises(DataError, match="a.tar.index is damaged"):
        load(str(tmp_path), "train")


def test_other_bad_data_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no shard"):
        load(str(tmp_path), "train")
    shard = write_shard(
        tmp_path / "a.tar", range(20), more=[("x.png", b"no image"), ("x.cls", b"1")]
    )
    images = load(str(tmp_path), "train").images
    with pytest.raises(DataError, match=rf"cannot read image at byte \d+ of {shard}"):
        images[[len(images) - 1]]
    write_shard(shard, range(20), more=[("x.png", b"no label")])
    with pytest.raises(DataError, match=r"1 of \d+ samples of train have no label"):
        load(str(tmp_path), "train")
    write_shard(shard, range(20), more=[("x.cls", b"cat")])
    with pytest.raises(DataError, match="not a sound .tar file of samples .*cat"):
        load(str(tmp_path), "train")
    write_shard(shard, range(20), labels=False, more=[(".hidden.png", b""), ("readme", b"")])
    assert load(str(tmp_path), "train").labels is None
    shard.rename(tmp_path / "val.tar")
    with pytest.raises(DataError, match="none is left to train on"):
        load(str(tmp_path), "train")


@pytest.mark.slow
def test_the_command_that_writes_indices(tmp_path):
    shard = write_shard(tmp_path / "a.tar", range(5))
    command = [sys.executable, "-m", "src.dataset.webdataset", shard, tmp_path / "none.tar"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{shard}.index: 5 images\n"
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert len(load(str(tmp_path), "train")) <= 5


def test_a_run_on_shards(zygote, tmp_path):
    for split in SPLITS:
        write_shard(tmp_path / f"{split}.tar", range(24))
    words = [
        "model=vae",
        "network=mlp_autoencoder",
        "dataset=webdataset",
        f"dataset.root={tmp_path}/{{train,val,test}}.tar",
    ]
    words += [
        "dataset.image_size=8",
        "dataset.global_batch_size=8",
        "dataset.num_workers=1",
        "trainer.max_steps=4",
    ]
    words += [
        "callback.generation=null",
        "callback.grid=null",
        "logger=csv",
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = zygote.run("train", *words)
    assert done.code == 0, done.err


INDEX = {"start": [0, 8], "size": [4, 4], "label": [0, 1], "tenth": [0, 9], "bytes": 16}
ODD_ARRAYS = {
    "square": np.zeros((2, 2), int),
    "scalar": np.array(3),
    "longer": np.arange(5),
    "floats": np.array([0.5, 1.0]),
    "texts": np.array(["a", "b"]),
    "negative": np.array([-5, 0]),
    "huge": np.array([2**63 - 1, 0]),
    "unsigned": np.array([2**64 - 1, 0], dtype=np.uint64),
    "times": np.array([0, 1], dtype="datetime64[s]"),
    "truths": np.array([True, False]),
    "records": np.zeros(2, dtype=[("a", int)]),
}


@pytest.mark.parametrize("name", ["start", "size", "label", "tenth"])
@pytest.mark.parametrize("values", ODD_ARRAYS.values(), ids=ODD_ARRAYS)
def test_index_arrays_of_another_shape_are_one_line(tmp_path, name, values):
    (tmp_path / "a.tar").write_bytes(bytes(16))
    for odd in (values, None):
        with open(tmp_path / "a.tar.index", "wb") as file:
            np.savez(file, **(INDEX | ({} if odd is None else {name: odd})))
        if odd is None:
            (index,) = shards.read_indices([str(tmp_path / "a.tar")])
            assert index.size.tolist() == [4, 4]
        else:
            with pytest.raises(DataError, match="a.tar.index is damaged"):
                shards.read_indices([str(tmp_path / "a.tar")])


@pytest.mark.parametrize("values", [[1, 2], "x", 1.5j, None], ids=str)
def test_the_bytes_of_an_index_are_one_number(tmp_path, values):
    (tmp_path / "a.tar").write_bytes(bytes(16))
    with open(tmp_path / "a.tar.index", "wb") as file:
        np.savez(file, **(INDEX | {"bytes": values}))
    with pytest.raises(DataError, match="a.tar.index is damaged"):
        shards.read_indices([str(tmp_path / "a.tar")])


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"PK\x03\x04" + data))
def test_any_bytes_are_an_index_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("index")
    (folder / "a.tar").write_bytes(bytes(16))
    (folder / "a.tar.index").write_bytes(content)
    with pytest.raises(DataError, match="a.tar.index is damaged"):
        shards.read_indices([str(folder / "a.tar")])


LABELS = [b"1" + b"0" * 20, b"9" * 5000, b"-1", b"2147483648", b"x", b"", b"1.5", b"\xff"]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: str(label[:12]))
def test_labels_that_are_none_are_one_line(tmp_path, label):
    shard = write_shard(tmp_path / "a.tar", range(3), more=[("a.b/00002.cls", label)])
    with pytest.raises(DataError, match="not a sound .tar file of samples"):
        load(str(shard), "train")


@given(st.data())
def test_a_header_of_any_bytes_is_samples_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tar")
    shard = write_shard(folder / "a.tar", range(2))
    content = bytearray(shard.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    checksum = tarfile.calc_chksums(bytes(content[:512]))[0]
    content[148:156] = b"%06o\0 " % checksum
    shard.write_bytes(content)
    try:
        (index,) = shards.read_indices([str(shard)])
    except DataError:
        return
    assert len(index.start) <= 2


@pytest.fixture
def guarded(server, monkeypatch, tmp_path):
    """(address of the shards, netrc file) of a server that wants me:hunter2, or the token t0ken."""
    address, handler = server
    known = ("Basic " + base64.b64encode(b"me:hunter2").decode(), "Bearer t0ken")
    plain = handler.do_GET

    def ask(self):
        if self.headers.get("Authorization") not in known:
            type(self).requests += 1
            return self.send_error(401)
        return plain(self)

    handler.do_GET = ask
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("GENBENCH_HTTP_HOST", "GENBENCH_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return address, tmp_path / "netrc", handler


def test_logins_come_from_netrc(guarded, place):
    address, netrc, handler = guarded
    root = f"{address}/cats-{{000..002}}.tar"
    for text in (
        "",
        "default login me password hunter2\n",
        "machine other login me password hunter2\n",
        "machine 127.0.0.1 login me password wrong\n",
    ):
        netrc.write_text(text)
        before = handler.requests
        with pytest.raises(DataError, match="401.*machine 127.0.0.1 login USER") as caught:
            load(root, "train", 8)
        assert handler.requests - before == 3, "who wants a login is asked once"
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    images = load(root, "train", 8).images
    assert torch.equal(images[[0, 30]], load(str(place), "train", 8).images[[0, 30]])


def test_logins_come_from_the_environment_for_one_host(guarded, monkeypatch):
    address, _, _ = guarded
    monkeypatch.setenv("GENBENCH_HTTP_TOKEN", "t0ken")
    for host in ("other", ""):
        monkeypatch.setenv("GENBENCH_HTTP_HOST", host)
        with pytest.raises(DataError, match="GENBENCH_HTTP_HOST=127.0.0.1"):
            load(f"{address}/cats-000.tar", "train", 8)
    for host in ("127.0.0.1", address.removeprefix("http://")):
        monkeypatch.setenv("GENBENCH_HTTP_HOST", host)
        assert len(load(f"{address}/cats-000.tar", "train", 8)) > 10


@pytest.mark.parametrize("content", [b"machine a login me hunter2 x", b"hunter2", b"\xff\xfe\x00"])
def test_a_damaged_netrc_is_named_without_its_content(guarded, content):
    address, netrc, _ = guarded
    netrc.write_bytes(content)
    with pytest.raises(DataError, match="netrc") as caught:
        load(f"{address}/cats-000.tar", "train", 8)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_login_does_not_follow_to_another_host(guarded, place):
    address, netrc, handler = guarded
    seen = []

    class Elsewhere(Server):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            return super().do_GET()

    other = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *words: Elsewhere(*words, directory=str(place))
    )
    threading.Thread(target=other.serve_forever, daemon=True).start()

    def redirect(self):
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{other.server_port}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    handler.do_GET = redirect
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    assert len(load(f"{address}/cats-000.tar", "train", 8)) > 10
    other.shutdown()
    other.server_close()
    assert seen
    assert set(seen) == {None}
