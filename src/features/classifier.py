"""Features of a small classifier trained on the data set's own labels: no download needed.

Values compare within one data set only (LeNet-feature FIDs on MNIST have the same purpose and the
same limit). The network and its training are in ``src/features/classifier_network.py``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from src.errors import DataError, StorageError, first_line, require
from src.features.base import Features, ImageSource, check_images
from src.features.classifier_network import CHUNK, ClassifierNetwork, train_network
from src.files import atomic_path, content_hash
from src.noise import generator, mix

log = logging.getLogger(__name__)

# Part of the key: count up whenever the network, its training or the subset below changes.
RECIPE = "cnn-1"
MAX_BYTES = 256 * 2**20  # of images to train on; of a larger data set a fixed subset is used


class Classifier(Features):
    """Penultimate layer of a CNN trained once on labelled images.

    64 features, so that N >= 4 d holds for 360 images. Each has about mean 0 and variance 1 over
    the training data, which gives distances a scale: a collapsed generator is at 64 or beyond.
    Training is a function of (images, labels, recipe) on one machine: on the CPU, with one thread
    and generators of its own. Where several ranks share a cache, call ``fit`` on one of them first,
    else all of them train.

    Arguments:
        cache_dir: where trained weights are kept, shared by all runs (null: nowhere).
        num_steps: of the training, in optimiser steps, so that its cost does not grow with the
            data.
        batch_size: images of a step.
    """

    name = "classifier"
    num_features = 64

    def __init__(
        self, cache_dir: str | os.PathLike[str] | None, num_steps: int = 600, batch_size: int = 128
    ) -> None:
        require(num_steps >= 1, "num_steps", num_steps, "must be 1 or more")
        allowed = "must be 2 or more (batch normalisation)"
        require(batch_size >= 2, "batch_size", batch_size, allowed)
        super().__init__()
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.network: ClassifierNetwork | None = None
        self._key: str | None = None

    @property
    def key(self) -> str:
        """Hash of images, labels, recipe and weights, whose last bits depend on the machine."""
        self._check_fitted()
        return self._key

    # Lightning validates in inference mode, where nothing can be trained.
    @torch.inference_mode(False)
    def fit(self, images: ImageSource, labels: Tensor | None) -> None:
        """Train on uint8 images (N, C, H, W), in memory or lazy, with labels (N,).

        Weights that were trained on the same before are loaded from the cache.
        """
        images, labels = _read(images, labels)
        shape = tuple(images.shape)
        recipe = repr((RECIPE, self.num_features, self.num_steps, self.batch_size, shape))
        cause = content_hash(recipe, images.numpy().tobytes(), labels.numpy().tobytes())
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed GPUs too.
            torch.default_generator.manual_seed(mix("features.classifier", "init"))
            network = ClassifierNetwork(images.shape[1:], int(labels.max()) + 1, self.num_features)
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
        """Fraction of images whose most probable class is the label."""
        hits = 0
        for start in range(0, len(images), CHUNK):
            index = list(range(start, min(start + CHUNK, len(images))))
            guess = self.probabilities_of(self(images[index])).argmax(dim=1)
            hits += int((guess.cpu() == labels[index].cpu()).sum())
        return hits / len(images)

    def _extract(self, images: Tensor) -> Tensor:
        self._check_fitted()
        return self.network.features(images)

    def _check_fitted(self) -> None:
        if self.network is None:
            raise RuntimeError("features=classifier: call fit(images, labels) before use")


def _read(images: ImageSource, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images and labels on the CPU, a fixed subset where they exceed MAX_BYTES.

    Lazy images are read in chunks. Raises DataError where there are no labels of two or more
    classes.
    """
    if labels is None:
        raise DataError(
            "features=classifier needs labels, the data set has none: "
            "use features=pixels, features=inception, or metric=none"
        )
    if len(labels) != len(images) or len(images) == 0:
        raise DataError(f"features=classifier: {len(labels)} labels for {len(images)} images")
    first = images[[0]]
    check_images(first)
    index = _subset(len(images), most=max(1, MAX_BYTES // first.numel()))
    if isinstance(images, Tensor) and len(index) == len(images):
        pixels = images.detach().cpu().contiguous()
    else:
        pixels = torch.cat([images[part.tolist()].cpu() for part in index.split(CHUNK)])
    labels = labels.detach().cpu().long()[index].contiguous()
    if labels.min() < 0 or labels.max() == labels.min():
        found = f"labels are {labels.unique().tolist()[:5]}"
        raise DataError(f"features=classifier needs 2 or more classes 0, 1, ...: {found}")
    return pixels, labels


def _subset(num: int, most: int) -> Tensor:
    """Sorted positions of all ``num`` images, or of a fixed subset of ``most``."""
    if num <= most:
        return torch.arange(num)
    log.info("features=classifier: a fixed subset of %d of %d images is used", most, num)
    order = torch.randperm(num, generator=generator("features.classifier", "subset"))
    return order[:most].sort().values


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
        message = "features=classifier: cannot use %s, training again (%s)"
        log.warning(message, file, first_line(error))
        return False
    log.info("features=classifier: weights from %s", file)
    return True


def _save(network: nn.Module, file: Path) -> None:
    """Keep the weights for later runs; a cache that cannot be written costs time, not the run."""
    weights = network.state_dict()
    try:
        with atomic_path(file) as temporary:
            torch.save({"weights": weights, "hash": _hash(weights)}, temporary)
    except (StorageError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        message = "features=classifier: not cached, the next run trains again (%s)"
        log.warning(message, first_line(error))


def _hash(state: dict[str, Tensor]) -> str:
    parts: list[str | bytes] = []
    for name, value in state.items():
        parts += [name, value.numpy().tobytes()]
    return content_hash(*parts)
