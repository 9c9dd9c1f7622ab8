"""Learned perceptual distance of two images (LPIPS: Zhang et al. 2018) with weights from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from src.errors import require
from src.features.pretrained import Published, WeightFile, check_digest

LEAST = 64  # pixels across that the networks need; smaller images are enlarged
SETTING = "reconstruction.metrics.lpips"


def _published(file: str, sha256: str) -> Published:
    return Published(f"https://download.pytorch.org/models/{file}", (file,), sha256)


BACKBONES = {  # of torchvision, trained on ImageNet
    "alex": _published(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg": _published(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "squeeze": _published(
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
    ),
}


def lpips(
    weights: str | os.PathLike[str] | None = None,
    sha256: str | None = "published",
    net: str = "alex",
) -> Metric | None:
    """The distance with a backbone of torchvision from a file, or None where there is no file.

    Nothing is downloaded: the weights of the layers' channels (version 0.1) come with torchmetrics.
    Raises ConfigError for another ``net`` or kind of ``sha256``, DataError where the file cannot be
    read, CheckpointError where it is another one.

    Arguments:
        weights: path of the backbone's state dict; None switches the metric off.
        sha256: what the file must hash to: ``published``, 64 hexadecimal digits, or None for any.
        net: ``alex``, ``vgg`` or ``squeeze``.
    """
    require(net in BACKBONES, "net", net, f"must be one of {', '.join(BACKBONES)}")
    check_digest(sha256)
    if weights is None:
        return None
    published = BACKBONES[net]
    advice = f"give the file {published.names[0]} of {published.url}"
    file = WeightFile(Path(weights).expanduser(), SETTING, published, sha256, advice)

    def network() -> nn.Module:
        whole = _NoTrainLpips(net=net, pnet_rand=True)
        state = file.state()
        own = {name: state[_name_in_file(name)].float() for name in whole.net.state_dict()}
        whole.net.load_state_dict(own)
        return whole

    return Lpips(file.build(network), {"net": net, "weights_sha256": file.digest})


class Lpips(LearnedPerceptualImagePatchSimilarity):
    """torchmetrics' LPIPS of images (B, 1 or 3, H, W) in [0, 1], one value per image.

    Its own constructor would download weights.

    Arguments:
        network: (images, images, normalize) -> (B, 1, 1, 1).
        context: what the numbers depend on.
    """

    def __init__(self, network: nn.Module, context: dict[str, Any]) -> None:
        Metric.__init__(self)
        self.net = network
        self.context = context
        self.normalize = True
        self.reduction = "none"
        self.add_state("all_scores", default=[], dist_reduce_fx=None)

    def fit(self, shape: Sequence[int]) -> dict[str, Any]:
        """Enlarge images that are too small for the network."""
        small = min(shape[1:]) < LEAST
        self.net.resize = LEAST if small else None
        return self.context | {"resize": f"bilinear to {LEAST} x {LEAST}" if small else "none"}

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Add pairs; grey images are repeated to three channels."""
        super().update(img1.expand(-1, 3, -1, -1), img2.expand(-1, 3, -1, -1))


def _name_in_file(name: str) -> str:
    """``slice1.0.weight`` or ``slices.1.3.weight`` is called ``features.0.weight`` there."""
    return re.sub(r"^slices?\.?\d+\.", "features.", name)
