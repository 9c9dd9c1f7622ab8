"""Features of DINOv2 (Oquab et al. 2023): the class token.

Stein et al. 2023 (dgm-eval) compare images in them. torch-fidelity and torch.hub run whatever code
the authors' repository holds today, so the network is written here, with the names of the published
weights. As in dgm-eval, and unlike in torch-fidelity, images are resized with PIL's bicubic filter.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from src.errors import require
from src.features.pretrained import Pretrained, Published, load_exactly, resize

SIZE = 224  # pixels a side of an image
PATCH = 14  # and of a patch
TRAINED_GRID = 37  # patches a side that the published positions were trained for
# Mean and standard deviation of pixels in 0..1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Variant(NamedTuple):
    """Size of a vision transformer, its name in the published file and the hash of that file."""

    width: int
    depth: int
    heads: int
    model: str
    sha256: str

    @property
    def published(self) -> Published:
        """The published file."""
        file = f"{self.model}_pretrain.pth"
        url = f"https://dl.fbaipublicfiles.com/dinov2/{self.model}/{file}"
        return Published(url, (file,), self.sha256)


DIGESTS = {
    "dinov2_vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dinov2_vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2_vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
}
VARIANTS = {
    "vit-s-14": Variant(384, 12, 6, "dinov2_vits14", DIGESTS["dinov2_vits14"]),
    "vit-b-14": Variant(768, 12, 12, "dinov2_vitb14", DIGESTS["dinov2_vitb14"]),
    "vit-l-14": Variant(1024, 24, 16, "dinov2_vitl14", DIGESTS["dinov2_vitl14"]),
}


class DINOv2(Pretrained):
    """384, 768 or 1024 features of images of any size, stretched to 224 x 224 inside.

    Arguments:
        weights, sha256: see ``Pretrained``.
        variant: vit-s-14, vit-b-14 or vit-l-14 (the one of published distances).
    """

    name = "dinov2"
    recipe = "dinov2-bicubic-224"
    resize = "bicubic to 224 x 224 (PIL)"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        sha256: str | None = "published",
        variant: str = "vit-l-14",
    ) -> None:
        require(variant in VARIANTS, "variant", variant, f"must be one of {', '.join(VARIANTS)}")
        chosen = VARIANTS[variant]
        network = partial(_VisionTransformer, chosen.width, chosen.depth, chosen.heads)
        super().__init__(chosen.published, weights, sha256, partial(load_exactly, network))
        self.num_features = chosen.width

    def _describe(self, images: Tensor) -> Tensor:
        return self.network(normalize(resize(images, SIZE) / 255, *IMAGENET))


class _VisionTransformer(nn.Module):
    """Normalised images (B, 3, 224, 224) -> class token (B, width).

    Parameters are named as in the published files.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; part of the files
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](images)
        first = self.cls_token.expand(len(images), -1, -1)
        tokens = torch.cat([first, patches.flatten(2).mT], dim=1)
        return self.norm(self.blocks(tokens + self._positions(patches.shape[-1]))[:, 0])

    def _positions(self, side: int) -> Tensor:
        """Position embeddings for side x side patches.

        The scale has an offset of 0.1 and coordinates follow it rather than the sizes: a slip of
        the published network, on which its features depend.
        """
        whole = self.pos_embed[:, :1]
        grid = self.pos_embed[:, 1:].mT.unflatten(2, (TRAINED_GRID, TRAINED_GRID))
        scale = (side + 0.1) / TRAINED_GRID
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([whole, resized.flatten(2).mT], dim=1)


class _Block(nn.Module):
    """Pre-norm transformer block with LayerScale (Touvron et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        qkv = nn.Linear(width, 3 * width)
        proj = nn.Linear(width, width)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": proj})
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(width)})
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(width)})
        wide = nn.Linear(width, 4 * width)
        narrow = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=wide, act=nn.GELU(), fc2=narrow))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1["gamma"] * self._attend(self.norm1(x))
        return x + self.ls2["gamma"] * self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.attn["qkv"](x).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.attn["proj"](mixed.transpose(1, 2).flatten(2))
