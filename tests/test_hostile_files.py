"""Links, pipes, devices and small files of much content: refused in one line, and at once."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.dataset import image_folder, shards, webdataset
from src.errors import CheckpointError, DataError, StorageError
from src.rundir import lock
from src.rundir.checkpoint import find_checkpoint, read_checkpoint
from src.rundir.directory import run_directory
from src.rundir.history import histories, read_history
from src.rundir.pickled import MAX_WORK, ExcessError, check_pickle
from src.rundir.resume import Start
from src.rundir.store import CheckpointStore, damage


@pytest.fixture(autouse=True)
def quick(request):
    """Whatever is refused here is refused in less than two seconds of the processor."""
    begin = time.process_time()
    yield
    assert "always" in request.node.name or time.process_time() - begin < 2


def archive(path, pickled, more=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in (("a/byteorder", "little"), ("a/version", "3\n"), *more):
            file.writestr(name, content)
    return path


PUT = b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
SET, REDUCE = b"c__builtin__\nset\n", b"\x85R"
MANY = b"(" + b"K\x01" * 100_000 + b"t"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01"
STORE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)
SMALL = {  # a pickle, and what is said of it
    "shared name": (b"})q\x00" + PUT + b"K\x01s.", "names that are neither"),
    "shared member": (b"(" + SET + b"]q\x00)q\x00" + PUT + b"a" + REDUCE + b".", "refused"),
    "large number": (b"}\x8a\x14" + b"\x01" * 20 + b"K\x01s.", "names that are neither"),
    "number with a point": (b"}G" + bytes(8) + b"K\x01s.", "names that are neither"),
    "bytearray": (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f" + REDUCE + b".", "more than tensors"),
    "old bytearray": (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f" + REDUCE + b".", "more than"),
    "new object": (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85\x81.", "more than tensors"),
    "set of a number": (SET + b"J\xff\xff\xff\x7f" + REDUCE + b".", "more than tensors"),
    "encoding": (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.", "more than"),
    "steps": (b"N" * MAX_WORK + b".", "takes more than"),
    "copies": (MANY + b"q\x01" + (SET + b"h\x01" + REDUCE) * 11 + b".", "takes more than"),
    "dimensions": (TENSOR + b"(" + STORE + b"K\x00" + MANY + b"h\x01\x89N" + b"tR.", "more than"),
    "attributes": (TENSOR + b"}b.", "more than tensors"),
    "quantised": (b"ctorch._utils\n_rebuild_qtensor\n.", "kind that is not trained"),
    "no stack": (b"\x86.", "not a checkpoint, or a damaged one"),
    "no memory": (b"h\x07.", "not a checkpoint, or a damaged one"),
    "no end": (b"N", "not a checkpoint, or a damaged one"),
    "nothing": (b"", "not a checkpoint, or a damaged one"),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_pickles_that_would_cost_a_machine(tmp_path, name):
    pickled, message = SMALL[name]
    path = archive(tmp_path / "it.ckpt", b"\x80\x02" + pickled)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_callbacks_keep_is_read(tmp_path):
    kept = {
        "weights": OrderedDict(a=torch.ones(2, dtype=torch.bfloat16), b=torch.ones(2).half()),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "whole": [2**40, -1, True, None, 1.5, (1, (2, "three"))],
        "others": [{1, 2}, b"bytes", Counter("aab"), 1 + 2j, torch.Size([1]), torch.float32],
        3: torch.ones(3, dtype=torch.uint16),
    }
    module = torch.nn.Linear(2, 2)
    torch.save(kept | {"state_dict": module.state_dict()}, tmp_path / "it")
    with zipfile.ZipFile(tmp_path / "it") as file:
        check_pickle(file.read("it/data.pkl"))
    assert damage(tmp_path / "it") == ""


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**59), 2**59) | st.floats() | st.text(max_size=5),
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.dictionaries(st.text(max_size=5), parts, max_size=4)
        | st.tuples(parts, parts)
    ),
)


@given(VALUES)
def test_plain_values_always_pass(value):
    check_pickle(pickle.dumps(value, protocol=2))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(content):
    """The errors are those that reading a checkpoint explains."""
    with suppress(ExcessError, pickle.UnpicklingError, ValueError, IndexError, KeyError):
        check_pickle(b"\x80\x02" + content)


def doubled_name(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, b"\x80\x02N.", [("a/data.pkl", b"N.")])


def sparse(path):
    archive(path, b"\x80\x02N.")
    content = path.read_bytes()
    with open(path, "wb") as file:
        file.truncate(2**38)
        file.seek(0, os.SEEK_END)
        file.write(content)


ARCHIVES = {
    "something before": (
        lambda path: path.write_bytes(b"x" * 40 + archive(path, b"N.").read_bytes()),
        "something precedes",
    ),
    "something after": (
        lambda path: path.write_bytes(archive(path, b"N.").read_bytes() + b"x" * 40),
        "something follows",
    ),
    "two of a name": (doubled_name, "share names"),
    "two by case": (lambda path: archive(path, b"N.", [("a/DATA.PKL", b"N.")]), "share names"),
    "two folders": (lambda path: archive(path, b"N.", [("b/data/0", b"N.")]), "share names"),
    "holes": (sparse, "next to nothing of it is on the disk"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_readers_could_take_for_something_else(tmp_path, name):
    make, message = ARCHIVES[name]
    make(tmp_path / "it.ckpt")
    assert message in damage(tmp_path / "it.ckpt")


ODD = {  # what somebody may have put in the place of a file
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "private": lambda path: path.symlink_to(path.parents[3] / "private"),
    "lost": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
}


@pytest.fixture(params=ODD)
def theirs(request, tmp_path):
    """A run directory, a checkpoint in it, and what puts something odd into it."""
    (tmp_path / "private").write_text("step,a\n1,2\n")
    folder = tmp_path / "at" / "theirs"
    (folder / "checkpoints").mkdir(parents=True)

    def put(name):
        path = folder / name
        path.unlink(missing_ok=True)
        if request.param == "private" and path.parent == folder:
            path.symlink_to(tmp_path / "private")
        else:
            ODD[request.param](path)
        return path

    return folder, put


def test_odd_checkpoints_of_a_run(theirs, caplog):
    folder, put = theirs
    (folder / "checkpoints" / "latest.json").write_text('{"step": 5}')
    odd = put("checkpoints/step-00000005.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        find_checkpoint(folder)
    assert damage(odd)
    put("checkpoints/latest.json")
    assert CheckpointStore(folder / "checkpoints")._latest() is None


def test_an_odd_last_checkpoint_alone(theirs):
    folder, put = theirs
    put("checkpoints/last.ckpt")
    with pytest.raises(CheckpointError):
        find_checkpoint(folder)


def test_nothing_odd_is_brought_along(theirs, tmp_path):
    folder, put = theirs
    path = archive(folder / "checkpoints" / "step-00000005.ckpt", b"N.")
    mine = tmp_path / "mine"
    mine.mkdir()
    start = Start(path, {"global_step": 5})
    for name in ("metrics-1.csv", "metrics.csv", "checkpoints/best-00000003.ckpt"):
        odd = put(name)
        if not odd.exists() and odd.name == "metrics.csv":
            continue  # a link to nothing is nothing
        with pytest.raises((CheckpointError, StorageError), match=odd.name):
            start.bring_along(mine)
        assert not [file for file in mine.rglob("*") if file.is_file()]
        odd.rmdir() if odd.is_dir() and not odd.is_symlink() else odd.unlink()
    start.bring_along(mine)


def test_a_best_checkpoint_of_any_size_is_not_brought_along(tmp_path):
    (tmp_path / "theirs" / "checkpoints").mkdir(parents=True)
    path = archive(tmp_path / "theirs" / "checkpoints" / "step-00000005.ckpt", b"N.")
    with open(path.with_name("best-00000003.ckpt"), "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="best-00000003.ckpt: has more than"):
        Start(path, {"global_step": 5}).bring_along(tmp_path / "mine")


def test_the_users_own_files_stop_nothing(tmp_path):
    for name in ("metrics-old.csv", "metrics-2.csv", "metrics-10.csv", "metrics-1x.csv"):
        (tmp_path / name).write_text("step,loss\n1,2\n")
    assert [path.name for path in histories(tmp_path)] == ["metrics-2.csv", "metrics-10.csv"]
    assert read_history(tmp_path) == {"loss": ([1], [2.0])}


@pytest.mark.parametrize(
    "text",
    [
        "step," + ",".join(f"m{i}" for i in range(200_000)) + "\n1" + ",2" * 200_000 + "\n",
        "loss\n1\n",
        "step,loss\nx,1\n",
        "step,loss\n1,two\n",
        "step,loss\n1,2,3\n",
        "step,loss\n1," + "2" * 200_000 + "\n",
        "step\n\udcff\n",
    ],
    ids=range(7),
)
def test_what_is_no_history(tmp_path, text):
    (tmp_path / "metrics.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match="metrics.csv: damaged") as caught:
        read_history(tmp_path)
    assert "\n" not in str(caught.value)


def test_odd_histories_and_locks(theirs):
    folder, put = theirs
    if put("metrics.csv").exists():
        with pytest.raises(DataError, match="metrics.csv: damaged"):
            read_history(folder)
    put(lock.NAME)
    with pytest.raises(StorageError, match=rf"hydra.run.dir={folder}: "), lock.locked(folder):
        pass


def test_an_odd_log_of_a_run(theirs):
    from omegaconf import OmegaConf

    folder, put = theirs
    put("train.log")
    cfg = OmegaConf.create({"run_dir": str(folder)})
    with (
        pytest.raises(StorageError, match="train.log: it is no regular"),
        run_directory(cfg, {}, resumed=True),
    ):
        pass


def test_a_link_that_was_typed_is_followed(tmp_path):
    archive(tmp_path / "it.ckpt", b"\x80\x02N.")
    (tmp_path / "link").symlink_to("it.ckpt")
    assert find_checkpoint(tmp_path / "link") == tmp_path / "it.ckpt"
    with pytest.raises(CheckpointError, match="it.ckpt: not written by this project"):
        read_checkpoint(tmp_path / "link")


def test_images_behind_links_to_files_are_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "it.png")
    (tmp_path / "link.png").symlink_to("it.png")
    (tmp_path / "twice.png").symlink_to("link.png")
    assert image_folder.read_image(str(tmp_path / "twice.png"), 8, 3).shape == (3, 8, 8)


@pytest.mark.parametrize(("width", "height"), [(1, 60_000_000), (60_000_000, 1), (2, 2002)])
def test_lines_of_pixels_are_refused(tmp_path, width, height):
    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "it.png").write_bytes(content + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="one side is over 1000 times"):
        image_folder.read_image(str(tmp_path / "it.png"), 8, 3)


def test_links_that_make_millions_of_paths(tmp_path):
    for depth in range(25):
        (tmp_path / f"{depth:02}").mkdir()
    for depth in range(24):
        for name in "ab":
            (tmp_path / f"{depth:02}" / name).symlink_to(tmp_path / f"{depth + 1:02}")
    with pytest.raises(DataError, match="over 1000 times again"):
        image_folder.load(str(tmp_path), "train")


@pytest.mark.parametrize(
    "pattern", ["a{0..99999999999}", "{0..999}" * 4, "{a,b}" * 25, "{,}" * 5000, "{" * 10**5]
)
def test_patterns_that_stand_for_too_much(tmp_path, pattern):
    for root in (f"{tmp_path}/{pattern}.tar", f"http://127.0.0.1:9/{pattern}.tar"):
        with pytest.raises(DataError, match="stands for more than"):
            webdataset.load(root, "train")


def pax(tar, **headers):
    entry = tarfile.TarInfo("a.cls")
    entry.pax_headers = headers
    entry.size = 10
    tar.addfile(entry, io.BytesIO(b"1" * 10))


def holes(tar):
    pax(tar, **{"GNU.sparse.map": "0,1", "GNU.sparse.size": str(5 * 2**30)})


def long_label(tar):
    entry = tarfile.TarInfo("a.cls")
    entry.size = 2**20
    tar.addfile(entry, io.BytesIO(bytes(2**20)))


def large_label(tar):
    entry = tarfile.TarInfo("a.cls")
    entry.size = 20
    tar.addfile(entry, io.BytesIO(b"9" * 20))
    image = tarfile.TarInfo("a.png")
    image.size = 1
    tar.addfile(image, io.BytesIO(b"x"))


@pytest.mark.parametrize("harm", [holes, long_label, large_label])
def test_shards_that_hold_more_than_they_weigh(tmp_path, harm):
    with tarfile.open(tmp_path / "it.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        harm(tar)
    with pytest.raises(DataError, match="not a sound .tar"):
        shards.read_indices([str(tmp_path / "it.tar")])


COLUMNS = dict.fromkeys(("start", "size", "label", "tenth"), np.zeros(3, dtype=np.int64))
INDICES = {
    "packed": COLUMNS | {"start": np.zeros(10**7, dtype=np.int64)},
    "columns": COLUMNS | {"start": np.zeros(4, dtype=np.int64)},
    "a table": COLUMNS | {"label": np.zeros((3, 2), dtype=np.int64)},
    "a number": dict.fromkeys(COLUMNS, np.int64(1)),
    "outside": COLUMNS | {"size": np.full(3, 2**62)},
    "overflow": COLUMNS | {"size": np.full(3, 2**63 - 1), "start": np.full(3, 10_000)},
    "before": COLUMNS | {"start": np.full(3, -1)},
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_are_checked(tmp_path, name):
    with tarfile.open(tmp_path / "it.tar", "w"):
        pass
    save = np.savez_compressed if name == "packed" else np.savez
    with open(tmp_path / "it.tar.index", "wb") as file:
        save(file, bytes=(tmp_path / "it.tar").stat().st_size, **INDICES[name])
    with pytest.raises(DataError, match="it.tar.index is damaged"):
        shards.read_indices([str(tmp_path / "it.tar")])


@pytest.mark.parametrize("odd", ["pipe", "device", "lost", "folder"])
def test_odd_shards_and_indices(tmp_path, odd):
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    ODD[odd](folder / "it.tar")
    with pytest.raises(DataError, match="no ordinary file|there is no shard"):
        webdataset.load(str(folder), "train")
    path = Path(folder / "other.tar")
    with tarfile.open(path, "w"):
        pass
    ODD[odd](folder / "other.tar.index")
    with pytest.raises(DataError, match="cannot read .*other.tar.index"):
        shards.read_indices([str(path)])
