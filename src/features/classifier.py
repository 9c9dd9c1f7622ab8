"""Features of a small classifier trained on the data set's own labels: no download, and sees what the data show.

Values compare within one data set only (LeNet-feature FIDs on MNIST have the same purpose and the same limit).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import DataError, StorageError, first_line, require
from src.features.base import Features, ImageSource, check_images
from src.files import atomic_path, content_hash
from src.noise import generator, mix

log = logging.getLogger(__name__)

RECIPE = "cnn-1"  # part of the key: count up whenever the network, its training or the subset below changes
MAX_BYTES = 256 * 2**20  # of images to train on; a larger data set is represented by a fixed subset
CHUNK = 1000  # images per forward pass or read


class Classifier(Features):
    """Penultimate layer of a CNN trained once on labelled images; 64 features, so that N >= 4 d holds for 360 images.

    cache_dir: where trained weights are kept, shared by all runs (null: nowhere). num_steps, batch_size: of the
    training, counted in optimiser steps so that its cost does not grow with the data. Each feature has about mean 0 and
    variance 1 over the training data, which gives distances a scale: a collapsed generator is at 64 or beyond.
    Training is a function of (images, labels, recipe) on one machine: on the CPU, with one thread and generators of its
    own. Where several ranks share a cache, call ``fit`` on one of them first, else all of them train.
    """

    name = "classifier"
    num_features = 64

    def __init__(
        self, cache_dir: str | os.PathLike[str] | None, num_steps: int = 600, batch_size: int = 128
    ) -> None:
        require(num_steps >= 1, "num_steps", num_steps, "must be 1 or more")
        require(
            batch_size >= 2, "batch_size", batch_size, "must be 2 or more (batch normalisation)"
        )
        super().__init__()
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.num_steps, self.batch_size = num_steps, batch_size
        self.network: _Network | None = None
        self._key: str | None = None

    @property
    def key(self) -> str:
        """Hash of images, labels, recipe and what came of them: the weights, whose last bits depend on the machine."""
        self._check_fitted()
        return self._key

    @torch.inference_mode(
        False
    )  # Lightning validates in inference mode, where nothing can be trained
    def fit(self, images: ImageSource, labels: Tensor | None) -> None:
        """Train on uint8 images (N, C, H, W), in memory or lazy, with labels (N,), or load what was trained before."""
        images, labels = _read(images, labels)
        recipe = repr(
            (RECIPE, self.num_features, self.num_steps, self.batch_size, tuple(images.shape))
        )
        cause = content_hash(recipe, images.numpy().tobytes(), labels.numpy().tobytes())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                mix("features.classifier", "init")
            )  # torch.manual_seed reseeds GPUs too
            network = _Network(images.shape[1:], int(labels.max()) + 1, self.num_features)
        file = None if self.cache_dir is None else self.cache_dir / f"classifier-{cause}.pt"
        if file is None or not _load(network, file):
            train_network(network, images, labels, self.num_steps, self.batch_size)
            if file is not None:
                _save(network, file)
        self._key = content_hash(cause, _hash(network.state_dict()))
        self.network = network.requires_grad_(False).eval().to(self.device)

    def probabilities_of(self, features: Tensor) -> Tensor:
        """Class probabilities (B, num_classes) float32 of features (B, num_features)."""
        self._check_fitted()
        return self._frozen(lambda x: self.network.head(x.float()).softmax(dim=1), features)

    def accuracy(self, images: ImageSource, labels: Tensor) -> float:
        """Share of images whose most probable class is the label."""
        hits = 0
        for start in range(0, len(images), CHUNK):
            index = list(range(start, min(start + CHUNK, len(images))))
            seen = self.probabilities_of(self(images[index])).argmax(dim=1)
            hits += int((seen.cpu() == labels[index].cpu()).sum())
        return hits / len(images)

    def _extract(self, images: Tensor) -> Tensor:
        self._check_fitted()
        return self.network.features(images)

    def _check_fitted(self) -> None:
        if self.network is None:
            raise RuntimeError("features=classifier: call fit(images, labels) before use")


class _Network(nn.Module):
    """Three convolutions, pooled to 4 x 4, normalised linear features and one linear layer; 8 x 8 to 64 x 64 pixels."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_features: int
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        layers: list[nn.Module] = []
        for width in (16, 32, 64):
            halve = min(size) >= 8
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            layers.append(
                nn.MaxPool2d(2) if halve else nn.Identity()
            )  # before normalisation: a quarter of the work
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, size = width, [side // 2 if halve else side for side in size]
        pool = nn.Identity() if size == [4, 4] else nn.AdaptiveAvgPool2d(4)
        body = nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels * 16, num_features))
        self.body = nn.Sequential(body, nn.BatchNorm1d(num_features, affine=False))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(num_features, num_classes))

    def features(self, images: Tensor) -> Tensor:
        """Features of uint8 images: linear, so closer to a Gaussian than what a ReLU leaves."""
        return self.body(images.to(torch.float32) / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@torch.enable_grad()
def train_network(
    network: nn.Module, images: Tensor, labels: Tensor, num_steps: int, batch_size: int
) -> None:
    """Minimise the cross-entropy over images shifted by up to one pixel: AdamW, one-cycle learning rate, on the CPU."""
    log.info("features=classifier: training on %d images, %d steps", len(images), num_steps)
    start = time.perf_counter()
    order = generator("features.classifier", "order")
    epochs = math.ceil(num_steps * batch_size / len(images))
    index = torch.cat([torch.randperm(len(images), generator=order) for _ in range(epochs)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=num_steps + 1
    )
    network.train()
    with torch.autocast("cpu", enabled=False), _one_thread():
        for batch in index[: num_steps * batch_size].split(batch_size):
            loss = F.cross_entropy(network(_shift(images[batch], order)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    log.info(
        "features=classifier: trained, %.4f of the training images right, %.1f s",
        _score(network, images, labels),
        seconds,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads depend on how many there are: the floor of the distance on digits would move by 8 %."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shift(images: Tensor, random: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixel in both directions, repeating the border."""
    num, _, height, width = images.shape
    by = torch.randint(-1, 2, (2, num, 1), generator=random)
    rows = (torch.arange(height) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + by[1]).clamp(0, width - 1)
    moved = images[
        torch.arange(num)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _score(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy on at most 10,000 images, spread over the data."""
    step = math.ceil(len(images) / 10_000)
    images, labels = images[::step], labels[::step]
    network.eval()
    with torch.no_grad():
        hits = sum(
            int((network(x).argmax(1) == y).sum())
            for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        )
    return hits / len(images)


def _read(images: ImageSource, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images and labels on the CPU, a fixed subset where they exceed MAX_BYTES; lazy ones are read in chunks."""
    if labels is None:
        raise DataError(
            "features=classifier needs labels, the data set has none: "
            "use features=pixels, features=inception, or metric=none"
        )
    if len(labels) != len(images) or len(images) == 0:
        raise DataError(f"features=classifier: {len(labels)} labels for {len(images)} images")
    check_images(first := images[[0]])
    limit = max(1, MAX_BYTES // first.numel())
    labels = labels.detach().cpu().long()
    if len(images) > limit:
        index = (
            torch.randperm(len(images), generator=generator("features.classifier", "subset"))[
                :limit
            ]
            .sort()
            .values
        )
        log.info(
            "features=classifier: a fixed subset of %d of %d images is used", limit, len(images)
        )
    else:
        index = torch.arange(len(images))
    if isinstance(images, Tensor) and len(index) == len(images):
        pixels = images.detach().cpu().contiguous()
    else:
        pixels = torch.cat([images[part.tolist()].cpu() for part in index.split(CHUNK)])
    labels = labels[index].contiguous()
    if labels.min() < 0 or labels.max() == labels.min():
        raise DataError(
            f"features=classifier needs 2 or more classes 0, 1, ...: labels are {labels.unique().tolist()[:5]}"
        )
    return pixels, labels


def _load(network: nn.Module, file: Path) -> bool:
    """Fill the network from the cache; False where there is nothing usable."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if saved["hash"] != _hash(saved["weights"]):  # torch.load does not notice flipped bits
            raise ValueError("its weights do not match their hash")
        network.load_state_dict(saved["weights"])
    except FileNotFoundError:
        return False
    except Exception as error:  # damage shows in torch, zip or pickle: the answer is the same
        log.warning(
            "features=classifier: cannot use %s, training again (%s)", file, first_line(error)
        )
        return False
    log.info("features=classifier: weights from %s", file)
    return True


def _save(network: nn.Module, file: Path) -> None:
    """Keep the weights for later runs; a cache that cannot be written costs time, not the run."""
    try:
        with atomic_path(file) as temporary:
            torch.save(
                {"weights": network.state_dict(), "hash": _hash(network.state_dict())}, temporary
            )
    except (StorageError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        log.warning(
            "features=classifier: not cached, the next run trains again (%s)", first_line(error)
        )


def _hash(state: dict[str, Tensor]) -> str:
    return content_hash(
        *(part for name, value in state.items() for part in (name, value.numpy().tobytes()))
    )
