"""Features of real images: computed once for the same data, never stale or from damaged files."""

import numpy as np
import pytest
import torch

from src.dataset.base import ImageData
from src.dataset.digits import load
from src.evaluation.reference import reference_of
from src.features.base import Features
from src.features.pixels import Pixels


class Counting(Features):
    """The pixels; counts the images that it was asked for."""

    name, num_features, key = "counting", 64, "counting"
    asked = 0

    def _extract(self, images):
        self.asked += len(images)
        return images.flatten(1)


def test_features_of_real_images_are_computed_once_for_the_same_data(tmp_path):
    features, data = Counting(), load(None, "test")
    first = reference_of(features, data, tmp_path)
    again = reference_of(features, data, tmp_path)
    assert features.asked == 360
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.moments.cov, again.moments.cov)
    assert torch.equal(first.moments.root, again.moments.root)
    assert torch.equal(first.features[7], data.images[7].flatten().float())  # in order, unflipped
    changed = data.images.clone()
    changed[200, 0, 3, 3] += 1
    other = reference_of(features, ImageData(changed), tmp_path)
    assert features.asked == 720
    assert not torch.equal(other.features, first.features)
    features.key = "other weights"
    reference_of(features, data, tmp_path)
    assert features.asked == 1080


def test_held_out_images_need_no_moments(tmp_path):
    """One image has none; for more they are computed when asked for."""
    features, data = Counting(), load(None, "test")
    one = ImageData(data.images[:1])
    assert torch.equal(
        reference_of(features, one, tmp_path, decomposed=False).features, features(one.images)
    )
    found = [reference_of(features, data, tmp_path, decomposed=False) for _ in range(2)]
    assert features.asked == 1 + 1 + 360
    assert found[1].moments.root.shape[0] == 64
    with np.load(next(path for path in tmp_path.iterdir() if path.stat().st_size > 50_000)) as file:
        assert file.files == ["features"]
    with pytest.raises(ValueError, match="2 or more images, it got 1"):
        _ = reference_of(features, one, None).moments


def test_a_damaged_cache_is_not_used(tmp_path, caplog):
    features, data = Counting(), load(None, "test")
    reference_of(features, data, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    reference = reference_of(features, data, tmp_path)
    assert features.asked == 720
    assert "computing them again" in caplog.text
    assert torch.equal(reference.features[0], data.images[0].flatten().float())


def test_pixels_need_no_labels():
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    features = Pixels((1, 4, 4))
    features.fit(images, None)
    assert reference_of(features, ImageData(images), None).features.shape == (20, 16)
