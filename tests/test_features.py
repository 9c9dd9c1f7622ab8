"""Features: what they promise, how the classifier is trained and cached, how foreign weights are checked."""

import hashlib
import io
import logging
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from src.errors import CheckpointError, ConfigError, DataError
from src.features import classifier, inception
from src.features.base import CanClassify, Features
from src.features.classifier import Classifier
from src.features.inception import Inception
from src.noise import generator


def random_images(num, channels=1, size=8, key="images"):
    return torch.randint(0, 256, (num, channels, size, size), generator=generator(key), dtype=torch.uint8)


def quick(cache_dir=None, num_steps=3, images=None, labels=None):
    """A classifier trained for a moment: what is tested does not depend on what it learned."""
    features = Classifier(cache_dir, num_steps=num_steps, batch_size=16)
    images = random_images(40) if images is None else images
    features.fit(images, torch.arange(len(images)) % 4 if labels is None else labels)
    return features


class Lazy:
    """Images that can be read by position only, as from a folder."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        assert isinstance(index, list)
        return self.images[index]


# ---- every kind of features


class Mean(Features):
    name, num_features, key = "mean", 2, "mean"

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 2))

    def _extract(self, images):
        return self.network(images.flatten(1).float())


def test_features_are_frozen_whatever_the_surroundings():
    features, images = Mean(), random_images(5)
    expected = features(images)
    nn.ModuleList([features]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = features(images)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert features.fit(images, None) is None


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), TypeError, "images are torch.float32: features take uint8"),
        (np.zeros((2, 1, 8, 8)), TypeError, "images are ndarray"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), ValueError, r"shape \(1, 8, 8\): features take \(B, C, H, W\)"),
    ],
)
def test_only_uint8_batches_are_taken(images, error, message):
    with pytest.raises(error, match=message):
        Mean()(images)


# ---- classifier


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))[:, None]
    order = torch.randperm(len(images), generator=generator("digits"))
    train, test = order[:1257], order[1437:]
    labels = torch.from_numpy(data.target)
    return images[train], labels[train], images[test], labels[test]


def test_learns_digits(digits, caplog):
    images, labels, test_images, test_labels = digits
    features = Classifier(None)
    with caplog.at_level(logging.INFO):
        features.fit(images, labels)
    assert "training on 1257 images" in caplog.text
    assert "of the training images right" in caplog.text
    assert features.accuracy(test_images, test_labels) >= 0.975
    assert isinstance(features, CanClassify)
    torch.testing.assert_close(features.probabilities(test_images).sum(1), torch.ones(360))
    values = features(images)
    assert values.shape == (1257, features.num_features)
    assert torch.linalg.matrix_rank(values.T.cov()) == features.num_features  # no dead feature
    assert float(values.var(0).mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (2, 5)])
def test_any_image_size(channels, size):
    images = random_images(20, channels, size)
    features = quick(images=images, num_steps=1)
    assert features(images).shape == (20, 64)
    assert features.probabilities(images).shape == (20, 4)


def test_training_is_a_function_of_the_data_and_leaves_global_state_alone():
    first = quick()
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):  # as inside a validation
        second = quick()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert first.key == second.key
    assert torch.equal(first(random_images(9)), second(random_images(9)))
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_key_tells_images_labels_and_recipe_apart():
    images, labels = random_images(40), torch.arange(40) % 4
    keys = [
        quick().key,
        quick(labels=labels.flip(0)).key,
        quick(images=images.flip(0)).key,
        quick(images=images.view(40, 4, 4, 4)).key,
        quick(num_steps=2).key,
    ]
    assert len(set(keys)) == len(keys)


def test_cache_saves_the_training(tmp_path, monkeypatch):
    first = quick(tmp_path / "new folder")
    assert [file.name for file in (tmp_path / "new folder").iterdir()] == [f"classifier-{first.key}.pt"]
    monkeypatch.setattr(classifier, "train_network", lambda *_: pytest.fail("trained again"))
    second = quick(tmp_path / "new folder")
    assert torch.equal(first(random_images(9)), second(random_images(9)))
    assert not second(random_images(9)).requires_grad


@pytest.mark.parametrize("damage", [b"", b"garbage", None, "truncated", "flipped"])
def test_damaged_cache_is_replaced(damage, tmp_path, caplog):
    first = quick(tmp_path)
    file = tmp_path / f"classifier-{first.key}.pt"
    whole = file.read_bytes()
    middle = len(whole) // 2
    if damage is None:
        torch.save({"other": torch.zeros(3)}, file)
    elif damage == "truncated":
        file.write_bytes(whole[:middle])
    elif damage == "flipped":
        file.write_bytes(
            whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
        )
    else:
        file.write_bytes(damage)
    second = quick(tmp_path)
    assert "training again" in caplog.text
    assert torch.equal(first(random_images(9)), second(random_images(9)))
    caplog.clear()
    quick(tmp_path)
    assert "training again" not in caplog.text


def test_unwritable_cache_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    features = quick(tmp_path / "file")
    assert "not cached, the next run trains again" in caplog.text
    assert features(random_images(3)).shape == (3, 64)


def test_lazy_images_are_the_same_data():
    assert quick(images=Lazy(random_images(40))).key == quick().key


def test_large_data_are_represented_by_a_subset(monkeypatch):
    monkeypatch.setattr(classifier, "MAX_BYTES", 30 * 64)
    monkeypatch.setattr(classifier, "CHUNK", 7)
    images, labels = classifier._read(Lazy(random_images(40)), torch.arange(40))
    assert len(images) == 30
    assert torch.equal(images, random_images(40)[labels])
    assert quick(images=Lazy(random_images(40))).key == quick().key


def test_labels_are_needed():
    message = (
        "features=classifier needs labels, the data set has none: use features=inception, or callback.generation=null"
    )
    with pytest.raises(DataError) as caught:
        Classifier(None).fit(random_images(4), None)
    assert str(caught.value) == message
    with pytest.raises(DataError, match="2 or more classes"):
        quick(labels=torch.zeros(40, dtype=torch.long))
    with pytest.raises(DataError, match="3 labels for 40 images"):
        quick(labels=torch.arange(3))


def test_misuse_says_what_is_wrong():
    features = Classifier(None)
    for use in (features, features.probabilities, lambda _: features.key):
        with pytest.raises(RuntimeError, match="call fit"):
            use(random_images(2))
    with pytest.raises(ConfigError, match="num_steps=0: must be 1 or more"):
        Classifier(None, num_steps=0)
    with pytest.raises(TypeError, match="uint8"):
        quick(images=torch.zeros(40, 1, 8, 8))


# ---- inception


class Untrained(FeatureExtractorInceptionV3):
    """The structure with its random initial weights: the published ones are not at hand in a test."""

    def load_state_dict(self, *_):
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    file = tmp_path_factory.mktemp("inception") / "random = weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(Untrained("random", ["2048"], feature_extractor_weights_path=empty).state_dict(), file)
    return file


def test_inception_from_a_file(weights):
    before = torch.random.get_rng_state()
    features = Inception(weights)
    assert torch.equal(torch.random.get_rng_state(), before)
    grey = random_images(2)
    result = features(grey)
    assert result.shape == (2, features.num_features) == (2, 2048)
    assert result.dtype == torch.float32
    assert torch.equal(result, features(grey.repeat(1, 3, 1, 1)))
    assert not torch.equal(result[0], result[1])
    with pytest.raises(ValueError, match="1 or 3 channels, these have 2"):
        features(random_images(2, channels=2))


def test_inception_from_the_hub_cache_is_checked(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr(inception, "_build", lambda *_: nn.Identity())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.FILE_NAME).symlink_to(weights)
    with pytest.raises(CheckpointError, match="expected 6726825d: delete the file"):
        Inception()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "PINNED_SHA256", digest[:8])
    assert Inception().key == Inception(weights).key
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    assert Inception(other).key != Inception().key


def test_inception_offline_names_both_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(DataError) as caught:
        Inception()
    text = str(caught.value)
    assert "\n" not in text
    for part in (f"features.weights=PATH to the file {inception.FILE_NAME}", inception.URL_INCEPTION_V3, "not known"):
        assert part in text


def test_inception_without_its_file(tmp_path):
    with pytest.raises(DataError, match=r"features.weights=.*missing.pth: cannot be read \(No such file"):
        Inception(tmp_path / "missing.pth")


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code from a weight file was run",))


@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.zeros(2)}, b"text", Payload()])
def test_inception_refuses_other_files(content, tmp_path):
    file = tmp_path / "other.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match="not a weight file of this network") as caught:
        Inception(file)
    assert "\n" not in str(caught.value)
