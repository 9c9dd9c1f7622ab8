"""Features: what they promise, images as features, how the classifier is trained and cached."""

import logging

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support import build
from torch import nn

from src.errors import ConfigError, DataError
from src.features import classifier
from src.features.base import CanClassify, Features, HasAccuracy
from src.features.classifier import Classifier
from src.features.pixels import Pixels
from src.noise import generator


def random_images(num, channels=1, size=8, key="images"):
    return torch.randint(
        0, 256, (num, channels, size, size), generator=generator(key), dtype=torch.uint8
    )


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
        (
            torch.zeros(1, 8, 8, dtype=torch.uint8),
            ValueError,
            r"shape \(1, 8, 8\): features take \(B, C, H, W\)",
        ),
    ],
)
def test_only_uint8_batches_are_taken(images, error, message):
    with pytest.raises(error, match=message):
        Mean()(images)


def test_features_of_an_image_do_not_depend_on_its_batch():
    images = random_images(9)
    for features in (quick(), Pixels((1, 8, 8))):
        alone = torch.cat([features(image[None]) for image in images])
        torch.testing.assert_close(features(images), alone, rtol=1e-5, atol=1e-5)


# ---- pixels


def test_pixels_are_the_images_without_loss():
    images = random_images(5, channels=3)
    features = build("features", "pixels", shape=(3, 8, 8))
    values = features(images)
    assert values.dtype == torch.float32
    assert values.shape == (5, features.num_features) == (5, 192)
    assert torch.equal((values * 127.5 + 127.5).round().to(torch.uint8), images.flatten(1))
    distance = (images[0].double() - images[1].double()).square().sum() / 127.5**2
    torch.testing.assert_close(
        (values[0] - values[1]).square().sum().double(), distance, rtol=1e-5, atol=0
    )
    assert features.fit(images, None) is None
    assert not isinstance(features, CanClassify | HasAccuracy)


def test_large_images_are_averaged_over_blocks():
    images = random_images(4, channels=3, size=64)
    features = Pixels((3, 64, 64))
    assert features.num_features == 3 * 32 * 32
    blocks = images.double().reshape(4, 3, 32, 2, 32, 2).mean((3, 5)).flatten(1) / 127.5 - 1
    torch.testing.assert_close(features(images).double(), blocks, rtol=0, atol=1e-6)
    wide = torch.randint(0, 256, (2, 1, 4, 9), generator=generator("wide"), dtype=torch.uint8)
    features = Pixels((1, 4, 9), max_size=3)
    assert features(wide).shape == (2, 9)
    assert float(features(wide).abs().max()) <= 1


def test_pixels_key_and_misuse():
    # the same numbers
    assert Pixels((1, 8, 8)).key == Pixels([1, 8, 8]).key == Pixels((1, 8, 8), max_size=16).key
    assert (
        len({Pixels((1, 8, 8), max_size=size).key for size in (8, 4)} | {Pixels((1, 4, 16)).key})
        == 3
    )
    with pytest.raises(ValueError, match=r"set up for images \(1, 8, 8\), these are \(1, 4, 16\)"):
        Pixels((1, 8, 8))(random_images(2).view(2, 1, 4, 16))
    with pytest.raises(ConfigError, match=r"shape=\(8, 8\): must be channels, height, width"):
        Pixels((8, 8))
    with pytest.raises(ConfigError, match="max_size=0: must be 1 or more"):
        Pixels((1, 8, 8), max_size=0)


# ---- classifier


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))[:, None]
    order = torch.randperm(len(images), generator=generator("digits"))
    train, test = order[:1257], order[1437:]
    labels = torch.from_numpy(data.target)
    return images[train], labels[train], images[test], labels[test]


@pytest.mark.slow
def test_learns_digits(digits, caplog):
    images, labels, test_images, test_labels = digits
    features = Classifier(None)
    with caplog.at_level(logging.INFO):
        features.fit(images, labels)
    assert "training on 1257 images" in caplog.text
    assert "of the training images right" in caplog.text
    assert features.accuracy(test_images, test_labels) >= 0.975
    assert isinstance(features, CanClassify)
    assert isinstance(features, HasAccuracy)
    values = features(images)
    assert values.shape == (1257, features.num_features)
    assert torch.linalg.matrix_rank(values.T.cov()) == features.num_features  # no dead feature
    assert float(values.var(0).mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (2, 5)])
def test_any_image_size(channels, size):
    images = random_images(20, channels, size)
    features = quick(images=images, num_steps=1)
    assert features(images).shape == (20, 64)
    assert features.probabilities_of(features(images)).shape == (20, 4)


def test_one_pass_gives_features_and_probabilities():
    features, images = quick(), random_images(9)
    with torch.no_grad():
        expected = features.network(images).softmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = features.probabilities_of(features(images).double())
    assert result.dtype == torch.float32
    assert not result.requires_grad
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    right = expected.argmax(1)
    wrong = (right + 1) % 4
    assert features.accuracy(images, torch.cat([right[:6], wrong[6:]])) == pytest.approx(6 / 9)


def test_training_is_a_function_of_the_data_and_leaves_global_state_alone():
    first = quick()
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    # as inside a validation
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
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


def test_key_tells_weights_apart(tmp_path):
    """Another machine trains weights that differ in the last bits, and caches are copied."""
    first = quick(tmp_path)
    (file,) = tmp_path.iterdir()
    saved = torch.load(file, weights_only=True)
    saved["weights"]["head.1.bias"] += 1e-6
    torch.save({"weights": saved["weights"], "hash": classifier._hash(saved["weights"])}, file)
    second = quick(tmp_path)
    assert not torch.equal(second.network.head[1].bias, first.network.head[1].bias)
    assert second.key != first.key


def test_cache_saves_the_training(tmp_path, monkeypatch):
    first = quick(tmp_path / "new folder")
    assert [file.name[:11] for file in (tmp_path / "new folder").iterdir()] == ["classifier-"]
    monkeypatch.setattr(classifier, "train_network", lambda *_: pytest.fail("trained again"))
    second = quick(tmp_path / "new folder")
    assert first.key == second.key
    assert torch.equal(first(random_images(9)), second(random_images(9)))
    assert not second(random_images(9)).requires_grad


@pytest.mark.parametrize("damage", [b"", b"garbage", None, "truncated", "flipped"])
def test_damaged_cache_is_replaced(damage, tmp_path, caplog):
    first = quick(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    if damage is None:
        torch.save({"other": torch.zeros(3)}, file)
    elif damage == "truncated":
        file.write_bytes(whole[:middle])
    elif damage == "flipped":
        file.write_bytes(
            whole[:middle]
            + bytes(255 - byte for byte in whole[middle : middle + 64])
            + whole[middle + 64 :]
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
        "features=classifier needs labels, the data set has none: "
        "use features=pixels, features=inception, or metric=none"
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
    for use in (features, features.probabilities_of, lambda _: features.key):
        with pytest.raises(RuntimeError, match="call fit"):
            use(random_images(2))
    with pytest.raises(ConfigError, match="num_steps=0: must be 1 or more"):
        Classifier(None, num_steps=0)
    with pytest.raises(TypeError, match="uint8"):
        quick(images=torch.zeros(40, 1, 8, 8))
