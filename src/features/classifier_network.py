"""The network of the classifier's features, and its training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.noise import generator

log = logging.getLogger(__name__)

CHUNK = 1000  # images per forward pass or read


class ClassifierNetwork(nn.Module):
    """Three convolutions, pooled to 4 x 4, normalised linear features and one linear layer.

    For images of 8 x 8 to 64 x 64 pixels.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_features: int
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        layers: list[nn.Module] = []
        for width in (16, 32, 64):
            halve = min(size) >= 8
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            # Pooled before normalisation: a quarter of the work.
            layers.append(nn.MaxPool2d(2) if halve else nn.Identity())
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if halve:
                size = [side // 2 for side in size]
        pool = nn.Identity() if size == [4, 4] else nn.AdaptiveAvgPool2d(4)
        body = nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels * 16, num_features))
        self.body = nn.Sequential(body, nn.BatchNorm1d(num_features, affine=False))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(num_features, num_classes))

    def features(self, images: Tensor) -> Tensor:
        """Features of uint8 images: linear, so closer to a Gaussian than what a ReLU leaves."""
        return self.body(images.to(torch.float32) / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of uint8 images."""
        return self.head(self.features(images))


@torch.enable_grad()
def train_network(
    network: nn.Module, images: Tensor, labels: Tensor, num_steps: int, batch_size: int
) -> None:
    """Minimise the cross-entropy over images shifted by up to one pixel, on the CPU.

    AdamW with a one-cycle learning rate.
    """
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
            logits = network(_shift(images[batch], order))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    accuracy = _accuracy(network, images, labels)
    message = "features=classifier: trained, %.4f of the training images right, %.1f s"
    log.info(message, accuracy, seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run the block on one thread: sums over threads depend on how many there are.

    The floor of the distance on digits would move by 8 %.
    """
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
    image = torch.arange(num)[:, None, None]
    moved = images[image, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy on at most 10,000 images, spread over the data."""
    step = math.ceil(len(images) / 10_000)
    images = images[::step]
    labels = labels[::step]
    network.eval()
    hits = 0
    with torch.no_grad():
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            hits += int((network(x).argmax(1) == y).sum())
    return hits / len(images)
