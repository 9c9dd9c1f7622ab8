"""Features of CLIP's image encoder (Radford et al. 2021).

Kynkäänniemi et al. 2023 take the Fréchet distance in them. The network is torch-fidelity's. As
in OpenAI's code, and unlike in torch-fidelity, images are resized with PIL's bicubic filter.
"""

from __future__ import annotations

import io
import os
import zipfile
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, VisionTransformer
from torchvision.transforms.functional import normalize

from src.errors import require
from src.features.pretrained import Pretrained, Published, State, WeightFile, load_exactly, resize

# Mean and standard deviation of pixels in 0..1.
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Variant(NamedTuple):
    """Size of an image encoder, in the order of its constructor; the first two in pixels a side."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    num_features: int


VARIANTS = {
    "vit-b-32": Variant(224, 32, 768, 12, 12, 512),
    "vit-b-16": Variant(224, 16, 768, 12, 12, 512),
    "vit-l-14": Variant(224, 14, 1024, 24, 16, 768),
    "vit-l-14-336px": Variant(336, 14, 1024, 24, 16, 768),
}


class CLIP(Pretrained):
    """512 or 768 features: the image embedding of CLIP (Radford et al. 2021), not normalised.

    Images of any size are stretched to a square inside. OpenAI publishes TorchScript archives,
    which hold code beside the weights: only the published file is opened, and only its state dict
    used (a digest that a checkpoint brings is no reason to trust one); else a state dict is needed.

    Arguments:
        weights, sha256: see ``Pretrained``.
        variant: vit-b-32 (the one of FID_CLIP), vit-b-16, vit-l-14 or vit-l-14-336px.
    """

    name = "clip"
    recipe = "clip-bicubic"
    resize = "bicubic to the network's input size (PIL)"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        sha256: str | None = "published",
        variant: str = "vit-b-32",
    ) -> None:
        require(variant in VARIANTS, "variant", variant, f"must be one of {', '.join(VARIANTS)}")
        chosen = VARIANTS[variant]
        network = partial(VisionTransformer, *chosen)
        super().__init__(_published(variant), weights, sha256, partial(load_exactly, network))
        self.num_features = chosen.num_features
        self.image_size = chosen.image_size

    def _describe(self, images: Tensor) -> Tensor:
        return self.network(normalize(resize(images, self.image_size) / 255, *PIXELS))

    def _read(self, file: WeightFile, pinned: bool) -> State:
        if not _is_torchscript(file.content):
            state = super()._read(file, pinned)
        elif pinned:
            state = torch.jit.load(io.BytesIO(file.content), map_location="cpu").state_dict()
        else:
            allowed = "only the published one is opened; give a state dict"
            raise ValueError(f"a TorchScript archive holds code: {allowed}")
        prefix = "visual."  # the rest is the text encoder
        visual = [name for name in state if name.startswith(prefix)]
        return {name.removeprefix(prefix): state[name] for name in visual}


def _published(variant: str) -> Published:
    """OpenAI's file; its address holds its SHA-256."""
    known = MODEL_METADATA[f"clip-{variant}"]
    # torch-fidelity's name and OpenAI's.
    names = (f"clip-{variant}-{known['hash']}.pt", f"{known['filename']}.pt")
    return Published(MODEL_URLS[f"clip-{variant}"], names, known["hash"])


def _is_torchscript(content: bytes) -> bool:
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return False
    names = zipfile.ZipFile(file).namelist()
    return any(name.endswith("/constants.pkl") for name in names)
