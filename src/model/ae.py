"""The deterministic autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.model.base import GenerativeModel
from src.network.layers import MAX_WIDTH, check_count
from src.noise import Generators


class AutoEncoder(GenerativeModel):
    """Autoencoder with a code in (-1, 1)^latent_dim, trained on the squared error (Hinton & Salakhutdinov 2006).

    The bounded code (tanh) makes it a compressor: ``compress`` stores one byte per latent, ``decompress`` reads it.
    It has no prior over codes, hence no ``sample``. encoder: (B, C, H, W) -> (B, encoder.num_features);
    decoder: (B, latent_dim) -> (B, C, H, W).
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, shape: Sequence[int]
    ) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim, MAX_WIDTH)
        self.encoder, self.decoder = encoder, decoder
        self.to_code = nn.Linear(encoder.num_features, latent_dim)
        self.compression_ratio = (
            math.prod(shape) / latent_dim
        )  # bytes of the 8-bit image / bytes of the code

    def encode(self, x: Tensor) -> Tensor:
        """Code (B, latent_dim) in (-1, 1)."""
        return self.to_code(self.encoder(x)).tanh()

    def decode(self, code: Tensor) -> Tensor:
        """Image (B, C, H, W) in [-1, 1] of a code."""
        return self.decoder(code).clamp(-1, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Image of the code of x."""
        return self.decode(self.encode(x))

    def compress(self, x: Tensor) -> Tensor:
        """Code of x as bytes: (B, latent_dim) uint8, the 256 levels evenly spaced over [-1, 1]."""
        return ((self.encode(x) + 1) * 127.5).round().to(torch.uint8)

    def decompress(self, code: Tensor) -> Tensor:
        """Image (B, C, H, W) in [-1, 1] of a byte code."""
        return self.decode(code.float() / 127.5 - 1)

    def loss(
        self, x: Tensor, label: Tensor | None = None, generator: Generators = None
    ) -> dict[str, Tensor]:
        """Mean squared error per pixel on [-1, 1]; outside training also the PSNR (dB) through the byte code."""
        output = self.decoder(self.encode(x))
        losses = {"loss": F.mse_loss(output, x)}
        if not self.training:
            error = (
                (self.decompress(self.compress(x)) - x).square().flatten(1).mean(1).clamp(min=1e-10)
            )
            losses["psnr_compressed"] = (
                10 * torch.log10(4 / error)
            ).mean()  # the range of x is 2, its square 4
            losses["compression_ratio"] = x.new_tensor(self.compression_ratio)
        return losses
