"""Every data set of conf/dataset keeps its promises; none of these tests needs the network."""

import gzip
import hashlib
import importlib
import io
import math
import os
import pickle
import resource
import struct
import tarfile
import urllib.request
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, MNIST

from src.dataset import cifar10, digits, fashion_mnist, image_folder, mnist, shapes
from src.dataset.base import SPLITS, ImageData, Selection, fixed_split
from src.errors import ConfigError, DataError
from src.files import content_hash

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NAMES = sorted(path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml"))
KEYS = ["load", "root", "image_shape", "num_classes", "max_steps", "flip"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every attempt to download fails at once."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def config(name, **changes):
    whole = OmegaConf.create(
        {"dataset": OmegaConf.load(ROOT / "conf" / "dataset" / f"{name}.yaml")}
    )
    return OmegaConf.merge(whole, {"dataset": changes}).dataset


def parts_of(load, **where):
    return {split: load(split=split, **where) for split in SPLITS}


def hashes(data):
    images = data.images[torch.arange(len(data))]
    return [content_hash(image.numpy().tobytes()) for image in images]


# ---- small files in the official formats


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
    )


def write_mnist(root, name="MNIST", num_train=5020, num_test=30):
    rng = np.random.default_rng(0)
    for prefix, num in (("train", num_train), ("t10k", num_test)):
        images = rng.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(
            root / name / "raw" / f"{prefix}-labels-idx1-ubyte",
            (np.arange(num) % 10).astype(np.uint8),
        )
    return root


def write_cifar(root, per_batch=1004):
    """Five batches, a test batch and the meta file; returns the MD5 of each."""
    rng, md5 = np.random.default_rng(0), {}
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    batches = {name: per_batch for name, _ in CIFAR10.train_list} | {"test_batch": 30}
    contents = {
        name: {
            "data": rng.integers(0, 256, (num, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(num)],
        }
        for name, num in batches.items()
    }
    contents["batches.meta"] = {"label_names": list("abcdefghij")}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return md5


def picture(seed=0, width=20, height=16, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_pictures(folder, num, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + num):
        picture(number).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Roots with fake files, and the MD5 sums of the fake CIFAR batches."""
    root = tmp_path_factory.mktemp("data")
    write_mnist(root)
    write_mnist(root, "FashionMNIST")
    md5 = write_cifar(root)
    for name in "cat", "dog":
        write_pictures(root / "folder" / name, 40, first=40 * (name == "dog"))
    return root, md5


@pytest.fixture
def cifar_md5(files, monkeypatch):
    _, md5 = files
    monkeypatch.setattr(
        CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})


# ---- every YAML


@pytest.mark.parametrize("name", NAMES)
def test_yaml_has_the_common_structure(name):
    raw = OmegaConf.to_container(config(name), resolve=False)
    assert raw["load"]["_target_"] == f"src.dataset.{name}.load"
    assert raw["load"]["_partial_"] is True
    assert raw["load"]["root"] == "${dataset.root}"
    own = set(raw) - set(KEYS)
    assert own == set(raw["load"]) - {"_target_", "_partial_", "root"}, (
        "a key of its own is passed to load"
    )
    assert callable(importlib.import_module(f"src.dataset.{name}").load)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_loads_what_it_says(name, files, cifar_md5):
    root = files[0] / "folder" if name == "image_folder" else files[0]
    changes = (
        {}
        if OmegaConf.load(ROOT / "conf" / "dataset" / f"{name}.yaml").get("root", "???") is None
        else {"root": str(root)}
    )
    cfg = config(name, **changes)
    load = instantiate(cfg.load, _convert_="all")
    try:
        parts = parts_of(load)
    except DataError as error:
        pytest.skip(f"{name} cannot be made up here: {error}")
    shape = OmegaConf.to_container(cfg, resolve=True)["image_shape"]
    assert all(isinstance(size, int) for size in shape)
    seen = {}
    for split, data in parts.items():
        images = data.images[[0, len(data) - 1]]
        assert data.image_shape == tuple(shape) == images.shape[1:]
        assert images.dtype == torch.uint8
        seen[split] = hashes(data)
        if data.labels is not None:
            assert data.labels.dtype == torch.long
            assert 0 <= data.labels.min() <= data.labels.max() < (cfg.num_classes or math.inf)
    assert not set(seen["train"]) & set(seen["val"])
    assert not set(seen["train"]) & set(seen["test"])
    assert not set(seen["val"]) & set(seen["test"])
    assert hashes(load(split="val")) == seen["val"]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_split_lists_the_known(name):
    load = importlib.import_module(f"src.dataset.{name}").load
    with pytest.raises(ConfigError, match="split=valid: one of train, val, test"):
        load("anywhere", "valid")


# ---- base


def test_subset_of_lazy_images_stays_lazy_and_nests(files):
    data = image_folder.load(str(files[0] / "folder"), "train", image_size=8)
    once = data.subset(torch.tensor([5, 1, 3]))
    twice = once.subset(torch.tensor([2, 0]))
    assert isinstance(twice.images, Selection)
    assert torch.equal(twice.images[[0, 1]], data.images[torch.tensor([3, 5])])
    assert torch.equal(twice.labels, data.labels[[3, 5]])


def test_image_data_checks_lengths():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="2 labels for 3 images"):
        ImageData(images, torch.zeros(2).long())
    with pytest.raises(DataError, match="0 images"):
        ImageData(images[:0])


def test_fixed_splits_never_change():
    """Pinned: another permutation would mix the test images of old runs into new training sets."""
    assert fixed_split("pin", 12, 3, 3, "val").tolist() == [0, 8, 9]
    test = fixed_split("digits", 1797, 180, 360, "test")
    assert content_hash(test.numpy().tobytes()) == "a2ecb949d9e4f18857614bbdf55756bf"
    with pytest.raises(DataError, match="few has 6 images"):
        fixed_split("few", 6, 3, 3, "train")


# ---- digits and torchvision


def test_digits_cover_the_range_and_have_their_sizes():
    parts = parts_of(digits.load, root=None)
    assert {split: len(data) for split, data in parts.items()} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    values = parts["train"].images.unique()
    assert torch.equal(values, (torch.arange(17) * 255 / 16).round().to(torch.uint8))


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason=f"no MNIST in {SHARED}")
def test_real_mnist_keeps_the_official_test_set_apart():
    parts = parts_of(mnist.load, root=str(SHARED))
    assert {split: len(data) for split, data in parts.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    official = MNIST(str(SHARED), train=False)
    assert torch.equal(parts["test"].images[:, 0], official.data)
    rows = {split: {row.tobytes() for row in data.images.numpy()} for split, data in parts.items()}
    assert not rows["test"] & (rows["train"] | rows["val"])
    assert not rows["train"] & rows["val"]


def test_present_files_are_read_in_silence_and_nothing_is_written(files, cifar_md5, capfd):
    root = files[0]
    before = sorted(root.rglob("*"))
    for module, num in ((mnist, 20), (fashion_mnist, 20), (cifar10, 20)):
        sizes = {split: len(data) for split, data in parts_of(module.load, root=str(root)).items()}
        assert sizes == {"train": num, "val": 5000, "test": 30}
    assert sorted(root.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_cifar_pixels_keep_their_places(files, cifar_md5):
    root = files[0]
    stored = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert np.array_equal(cifar10.load(str(root), "test").images.flatten(1).numpy(), stored["data"])


def test_home_is_expanded(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files[0]))
    assert len(mnist.load("~", "test")) == 30


@pytest.mark.parametrize(
    ("module", "folder"),
    [(mnist, "MNIST/raw"), (fashion_mnist, "FashionMNIST/raw"), (cifar10, "cifar-10-batches-py")],
)
def test_failed_download_says_what_to_do(module, folder, tmp_path):
    with pytest.raises(DataError) as caught:
        module.load(str(tmp_path / "here"), "train")
    message = str(caught.value)
    assert f"dataset.root={tmp_path / 'here'}" in message
    assert "no network in tests" in message
    assert f"in {tmp_path / 'here' / folder}, or set dataset.root" in message
    assert "\n" not in message
    assert not list((tmp_path / "here").iterdir()), "nothing half done is left behind"


def test_root_that_cannot_be_made_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set dataset.root"):
        mnist.load(str(tmp_path / "file"), "train")
    with pytest.raises(ConfigError, match="dataset.root"):
        mnist.load("", "train")


def test_archives_at_hand_are_unpacked_without_a_download(files, tmp_path, monkeypatch):
    md5 = []
    for path in sorted((files[0] / "MNIST" / "raw").iterdir()):
        archive = tmp_path / "MNIST" / "raw" / f"{path.name}.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(gzip.compress(path.read_bytes(), 1))
        md5.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", md5)
    data = mnist.load(str(tmp_path), "val")
    assert torch.equal(data.images, mnist.load(str(files[0]), "val").images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"<html>" + data]
)
def test_damaged_mnist_file_is_named(damage, tmp_path):
    broken = write_mnist(tmp_path) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.raises(DataError, match=f"{broken} is damaged"):
        mnist.load(str(tmp_path), "train")
    assert len(mnist.load(str(tmp_path), "test")) == 30


def test_mnist_labels_must_match_images(tmp_path):
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(29, dtype=np.uint8))
    with pytest.raises(DataError, match="30 images and 29 labels"):
        mnist.load(str(tmp_path), "test")


def test_cifar_batch_with_a_wrong_checksum_is_named_and_never_unpickled(tmp_path, files, cifar_md5):
    write_cifar(tmp_path, per_batch=1004)
    broken = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    broken.write_bytes(b"cos\nabort\n(tR.")  # would end the process if it were unpickled
    with pytest.raises(DataError, match=f"{broken} is damaged"):
        cifar10.load(str(tmp_path), "train")


# ---- image folder


def test_flat_folder_has_no_labels_and_uses_every_file_once(tmp_path):
    write_pictures(tmp_path, 60)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._000.png").write_text("macOS leaves these")
    parts = parts_of(image_folder.load, root=str(tmp_path), image_size=8)
    assert all(data.labels is None for data in parts.values())
    assert sum(len(data) for data in parts.values()) == 60
    assert len(parts["train"]) > 40


def test_class_folders_give_sorted_labels(files):
    data = image_folder.load(str(files[0] / "folder"), "train", image_size=8)
    names = [Path(path.decode()).parent.name for path in data.images.paths]
    assert data.labels.tolist() == [["cat", "dog"].index(name) for name in names]


def test_split_folders_are_used_and_missing_ones_cut_from_train(tmp_path):
    for name in "a", "b":
        write_pictures(tmp_path / "train" / name, 30, first=30 * (name == "b"))
    write_pictures(tmp_path / "test" / "b", 5, first=100)
    parts = parts_of(image_folder.load, root=str(tmp_path), image_size=8)
    assert len(parts["test"]) == 5
    assert parts["test"].labels.tolist() == [1] * 5, (
        "the same class has the same label in every split"
    )
    assert len(parts["train"]) + len(parts["val"]) == 60
    assert not set(hashes(parts["train"])) & set(hashes(parts["val"]))
    write_pictures(tmp_path / "val" / "a", 3, first=200)
    assert len(image_folder.load(str(tmp_path), "val")) == 3
    assert len(image_folder.load(str(tmp_path), "train")) == 60


def test_split_folders_need_train(tmp_path):
    write_pictures(tmp_path / "test", 3)
    with pytest.raises(DataError, match="has test but no train"):
        image_folder.load(str(tmp_path), "train")


def test_new_files_move_no_other(tmp_path):
    def by_split():
        return {
            split: set(data.images.paths)
            for split, data in parts_of(image_folder.load, root=str(tmp_path)).items()
        }

    write_pictures(tmp_path, 50)
    before = by_split()
    write_pictures(tmp_path, 30, first=500)
    assert all(before[split] <= now for split, now in by_split().items())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_become_grey_or_colour(mode, channels, tmp_path):
    original = picture(mode=mode, width=16)
    original.save(tmp_path / "a.png")
    expected = np.array(original.convert("RGB" if channels == 3 else "L")).reshape(16, 16, channels)
    image = image_folder.read_image(str(tmp_path / "a.png"), 16, channels)
    assert image.dtype == torch.uint8
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_palette_with_transparency_warns_of_nothing(tmp_path, recwarn):
    picture(mode="P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert image_folder.read_image(str(tmp_path / "a.png"), 8, 3).shape == (3, 8, 8)
    assert not recwarn.list


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_keeps_its_upper_byte(channels, tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = image_folder.read_image(str(tmp_path / "a.png"), 16, channels)
    assert np.array_equal(image.numpy(), np.stack([ramp >> 8] * channels))


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c.webp", "d.bmp"])
def test_other_formats(name, tmp_path):
    picture(mode="RGB").save(tmp_path / name, quality=95)
    assert image_folder._find_images(tmp_path) == [name]
    assert image_folder.read_image(str(tmp_path / name), 16, 3).float().std() > 10


def test_cmyk_jpeg_shows_its_colour(tmp_path):
    Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = image_folder.read_image(str(tmp_path / "a.jpg"), 8, 3)
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 40, 90])).abs().max() < 8


def test_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255  # the middle third is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for name in "wide", "tall":
        image = image_folder.read_image(str(tmp_path / f"{name}.png"), 10, 1)
        assert image.shape == (1, 10, 10)
        assert image[0, 2:-2, 2:-2].min() > 250


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0, 0.02, 0.6])
def test_truncated_image_is_an_error_that_names_it(extension, keep, tmp_path):
    path = tmp_path / f"cut.{extension}"
    picture(width=64, height=64).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    dataset = image_folder.FolderImages([str(path)], 64, 3)
    with pytest.raises(DataError, match=f"cannot read image {path}"):
        dataset[[0]]


def test_corrupt_image_is_named_when_it_is_touched(tmp_path):
    write_pictures(tmp_path / "train", 12)
    broken = tmp_path / "train" / "005.png"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    images = image_folder.load(str(tmp_path), "train").images
    with pytest.raises(DataError, match=f"{broken}"):
        images[torch.arange(len(images))]


def refused(path, message):
    with pytest.raises(DataError, match=f"cannot read image {path}: .*{message}"):
        image_folder.read_image(str(path), 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "PCX", "PPM", "TGA", "ICNS"])
def test_other_formats_are_refused_whatever_they_are_called(kind, tmp_path):
    picture(mode="RGB").save(tmp_path / "a.png", format=kind)
    refused(tmp_path / "a.png", "cannot identify")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    ("side", "message"), [(13_000, "13000 x 13000 pixels are more than"), (40_000, "exceeds limit")]
)
def test_a_small_file_of_a_huge_image_is_refused_before_it_is_decoded(side, message, tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side // 8 + 1) * 100)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "bomb.png", message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_images_up_to_the_limit_are_read(tmp_path, monkeypatch, recwarn):
    picture(width=20, height=16).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # of PIL, which warns above it: ours counts
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 320)
    assert image_folder.read_image(str(tmp_path / "a.png"), 8, 3).shape == (3, 8, 8)
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 319)
    refused(tmp_path / "a.png", "20 x 16 pixels are more than 319")
    assert not recwarn.list


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "page.png").write_text("<html>")
    for name, message in (
        ("pipe", "no ordinary file"),
        ("lost", "gone"),
        ("zero", "no ordinary file"),
        ("page", ""),
    ):
        refused(tmp_path / f"{name}.png", message)


@pytest.mark.parametrize("links", [{"a/b": "."}, {"a/b": "a"}, {"a/x": "b", "b/y": "a"}])
def test_folders_that_hold_themselves_are_an_error(links, tmp_path):
    """Two such links would make 2**40 paths."""
    for name in "a", "b":
        write_pictures(tmp_path / name, 3)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "b")  # the same images twice: why not
    assert len(image_folder._find_images(tmp_path)) == 9
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="leads back to a folder that it is in"):
        image_folder.load(str(tmp_path), "train")


def test_an_archive_of_another_content_is_never_unpacked(tmp_path):
    """torchvision extracts without looking at names, but only what has the published MD5."""
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        for name in (
            "../escaped",
            str(tmp_path / "absolute"),
            f"{CIFAR10.base_folder}/data_batch_1",
        ):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match="cannot be downloaded"):
        cifar10.load(str(tmp_path), "train")
    assert [path.name for path in tmp_path.iterdir()] == [CIFAR10.filename]
    assert not (tmp_path.parent / "escaped").exists()


def test_folder_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=f"dataset.root={tmp_path / 'nowhere'} is not a folder"):
        image_folder.load(str(tmp_path / "nowhere"), "train")
    with pytest.raises(
        DataError,
        match=rf"dataset.root={tmp_path} holds no image \(.png, .jpg, .jpeg, .webp, .bmp\)",
    ):
        image_folder.load(str(tmp_path), "train")
    write_pictures(tmp_path, 1)
    with pytest.raises(DataError, match="none of its 1 images falls into"):
        parts_of(image_folder.load, root=str(tmp_path))
    with pytest.raises(ConfigError, match="channels=2"):
        image_folder.load(str(tmp_path), "train", channels=2)
    with pytest.raises(ConfigError, match="dataset.root"):
        image_folder.load("", "train")


def test_lazy_images_travel_to_workers(files):
    images = image_folder.load(str(files[0] / "folder"), "val", image_size=8).images
    batches = DataLoader(images, sampler=[[0, 1], [2]], batch_size=None, num_workers=1)
    assert torch.equal(torch.cat(list(batches)), images[[0, 1, 2]])


# ---- shapes


def centre_of_mass(images):
    """(N, 2): x and y in pixels."""
    weight = images[:, 0].double()
    places = torch.arange(images.shape[-1]) + 0.5
    total = weight.sum((1, 2))
    return torch.stack(
        [weight.sum(1) @ places.double() / total, weight.sum(2) @ places.double() / total], dim=1
    )


@pytest.fixture(scope="module")
def sprites():
    return parts_of(shapes.load, root=None)


def test_shapes_are_split_80_10_10_and_cover_the_grid(sprites):
    factors = torch.cat([data.factors for data in sprites.values()])
    assert len(factors) == math.prod(shapes.FACTOR_SIZES) == len(factors.unique(dim=0))
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert len(sprites[split]) / len(factors) == pytest.approx(share, abs=0.01)
        assert torch.equal(sprites[split].labels, sprites[split].factors[:, 0])


def test_factors_regenerate_the_image(sprites):
    data = sprites["test"]
    assert torch.equal(shapes.render(data.factors), data.images)
    assert torch.equal(shapes.render(data.factors[7:8]), data.images[7:8])
    assert data.images.amax((1, 2, 3)).min() == 255


def test_one_step_of_x_or_y_moves_the_centre_of_mass_by_one_step(sprites):
    centres = centre_of_mass(sprites["train"].images)
    places = (1 + torch.linspace(-1, 1, 8) * (1 - shapes.RADIUS)) * 16
    # a step is 2.7 pixels
    assert (centres - places[sprites["train"].factors[:, 3:]]).abs().max() < 0.1


@pytest.mark.parametrize("shape", range(3))
def test_scale_increases_area_by_its_square(shape):
    factors = torch.tensor([[shape, scale, 1, 3, 4] for scale in range(4)])
    area = shapes.render(factors, image_size=64).double().sum((1, 2, 3))
    assert (area.diff() > 0).all()
    assert torch.allclose(area / area[-1], torch.linspace(0.5, 1, 4).double() ** 2, atol=0.02)


@pytest.mark.parametrize(("shape", "turns"), [(0, 4), (1, 2), (2, 1)])
def test_orientation_has_the_period_of_the_shape(shape, turns):
    images = shapes.render(torch.tensor([[shape, 3, turn, 3, 3] for turn in range(8)])).int()
    same = [bool((images[0] - image).abs().max() <= 1) for image in images]
    assert same == [turn % (8 // turns) == 0 for turn in range(8)]


def test_a_quarter_turn_is_the_picture_turned():
    middle = [[2, 3, turn, 0, 0] for turn in (0, 2)]  # one place: the centre
    upright, turned = shapes.render(torch.tensor(middle), factor_sizes=(3, 4, 8, 1, 1)).int()
    assert (upright.rot90(-1, dims=(1, 2)) - turned).abs().max() <= 1


def test_equal_pictures_share_a_split(sprites):
    """Turned squares and ellipses repeat (up to rounding).

    A copy of a training image is never tested on.
    """
    coarse = {
        split: {row.tobytes() for row in (data.images[:, 0] >= 128).numpy()}
        for split, data in sprites.items()
    }
    repeats = coarse["train"] & coarse["test"]
    assert len(repeats) <= 0.02 * len(coarse["test"])


def test_other_grids_and_sizes():
    data = shapes.load(None, "train", image_size=16, factor_sizes=[2, 1, 3, 4, 5])
    assert data.image_shape == (1, 16, 16)
    with pytest.raises(ConfigError, match="at most 3 shapes"):
        shapes.load(None, "train", factor_sizes=(4, 1, 1, 8, 8))
    with pytest.raises(ConfigError, match="image_size=4"):
        shapes.load(None, "train", image_size=4)
