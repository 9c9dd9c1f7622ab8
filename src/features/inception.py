"""Features of the published FID (Heusel et al. 2017): Inception-v3 of 2015-12-05, pool layer.

TensorFlow-compatible. The network is torch-fidelity's, which unpickles whatever it is given: it
gets what was written here from a state dict that was read safely.
"""

from __future__ import annotations

import io
import os

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from src.features.pretrained import Pretrained, Published, State

# pytorch-fid and torch-fidelity publish the same bytes under two names.
PUBLISHED = Published(
    url=URL_INCEPTION_V3,
    names=("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


class Inception(Pretrained):
    """2048 features of images of any size, and the classes of the Inception score.

    Images are resized to 299 x 299 inside.
    weights, sha256: see ``Pretrained``; null accepts a converted copy of the weights.
    """

    name = "inception"
    num_features = 2048
    recipe = "inception-2048"
    resize = "bilinear to 299 x 299, as TensorFlow 1"

    def __init__(
        self, weights: str | os.PathLike[str] | None = None, sha256: str | None = "published"
    ) -> None:
        super().__init__(PUBLISHED, weights, sha256, _build)

    def probabilities_of(self, features: Tensor) -> Tensor:
        """Class probabilities (B, 1008) float32 of features (B, 2048): of the logits without bias.

        These define the Inception score (Salimans et al. 2016); torch-fidelity calls the logits
        ``logits_unbiased``.
        """

        def softmax(x: Tensor) -> Tensor:
            return (x.float() @ self.network.fc.weight.T).softmax(dim=1)

        return self._frozen(softmax, features)

    def _describe(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def _build(state: State) -> FeatureExtractorInceptionV3:
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    return FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=checked
    )
