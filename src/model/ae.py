"""The deterministic autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.errors import require_count
from src.model.base import GenerativeModel
from src.network.layers import MAX_WIDTH
from src.noise import Generators


class AutoEncoder(GenerativeModel):
    """Autoencoder trained on the squared error (Hinton & Salakhutdinov 2006).

    Its code is in (-1, 1)^latent_dim. The bounds (tanh) make it a compressor: ``compress`` stores
    one byte per latent, ``decompress`` reads it. It has no prior over codes, hence no ``sample``.

    Arguments:
        encoder: (B, C, H, W) -> (B, encoder.num_features).
        decoder: (B, latent_dim) -> (B, C, H, W).
        latent_dim: length of the code.
        shape: (C, H, W) of the images.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, shape: Sequence[int]
    ) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim, MAX_WIDTH)
        self.encoder = encoder
        self.decoder = decoder
        self.to_code = nn.Linear(encoder.num_features, latent_dim)
        # Bytes of the 8-bit image / bytes of the code.
        self.compression_ratio = math.prod(shape) / latent_dim

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
        """Mean squared error per pixel on [-1, 1].

        Outside training also the PSNR (dB) through the byte code, and the compression ratio.
        """
        output = self.decoder(self.encode(x))
        losses = {"loss": F.mse_loss(output, x)}
        if not self.training:
            difference = self.decompress(self.compress(x)) - x
            error = difference.square().flatten(1).mean(1).clamp(min=1e-10)
            psnr = 10 * torch.log10(4 / error)  # the range of x is 2, its square 4
            losses["psnr_compressed"] = psnr.mean()
            losses["compression_ratio"] = x.new_tensor(self.compression_ratio)
        return losses
