"""Features of networks with published weights.

A file is found or downloaded once, hashed, and only then read.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import CheckpointError, DataError, first_line, require
from src.features.base import Features
from src.files import content_hash

log = logging.getLogger(__name__)

State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A published weight file: where it is, its names in torch's hub cache, its hash.

    The first of the names is ours.
    """

    url: str
    names: tuple[str, ...]
    sha256: str


class Pretrained(Features):
    """Features of a network whose weights come from a file; grey images get three channels.

    Arguments:
        published: the published file.
        weights: path of the weight file; null: the published one from torch's hub cache, downloaded
            there once.
        sha256: what the file must hash to before it is opened: ``published`` (the digest pinned in
            the code), 64 hexadecimal digits, or null, which accepts any file. The hash of the file
            is part of the key in any case.
        build: state dict -> network.

    Raises DataError when there is no file, CheckpointError when it is another one.

    Files are data: they are read with ``weights_only=True``, so no code in them can run, and once,
    so they cannot change between check and use.
    """

    recipe: str  # part of the key: count up whenever the preprocessing or the network changes

    def __init__(
        self,
        published: Published,
        weights: str | os.PathLike[str] | None,
        sha256: str | None,
        build: Callable[[State], nn.Module],
    ) -> None:
        is_digest = re.fullmatch("[0-9a-f]{64}", str(sha256)) is not None
        valid = is_digest or sha256 in (None, "published")
        allowed = "must be published, 64 hexadecimal digits (lower case), or null for any file"
        require(valid, "sha256", sha256, allowed)
        super().__init__()
        path = _find(published, self.name) if weights is None else Path(weights).expanduser()
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); {_ways_out(published)}"
            raise DataError(f"features.weights={path}: {reason}") from error
        digest = hashlib.sha256(content).hexdigest()
        _check(path, digest, published.sha256 if sha256 == "published" else sha256)
        self._key = content_hash(self.recipe, digest)
        self.network = self._build(content, path, digest == published.sha256, build)

    @property
    def key(self) -> str:
        """Hash of the weight file and of what is done with it."""
        return self._key

    @abstractmethod
    def _describe(self, images: Tensor) -> Tensor:
        """Features of uint8 images with three channels."""

    def _extract(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            allowed = f"features={self.name} takes images with 1 or 3 channels"
            raise ValueError(f"{allowed}, these have {channels}")
        return self._describe(images.expand(-1, 3, -1, -1))

    def _read(self, content: bytes, pinned: bool) -> State:
        """The state dict in a file; pinned: it is the published file, byte for byte."""
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))

    def _build(
        self, content: bytes, path: Path, pinned: bool, build: Callable[[State], nn.Module]
    ) -> nn.Module:
        try:
            # Random initial weights must not move the run's random numbers.
            with torch.random.fork_rng(devices=[]):
                return build(self._read(content, pinned)).requires_grad_(False)
        except MemoryError:
            raise
        except Exception as error:  # foreign files fail in pickle, zip or torch
            reason = f"{type(error).__name__}: {first_line(error)}"
            problem = f"cannot be read as weights of this network ({reason})"
            raise CheckpointError(f"features.weights={path}: {problem}") from error


def load_exactly(network: Callable[[], nn.Module], state: State) -> nn.Module:
    """A float32 network made of the tensors of a state dict, all of them.

    No weights are drawn to be overwritten.
    """
    with torch.device("meta"):
        empty = network()
    empty.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return empty


def resize(images: Tensor, size: int) -> Tensor:
    """Stretch uint8 images to (B, C, size, size) as PIL's bicubic filter does.

    float32 with whole values in 0..255. PIL filters rows, then columns, and rounds after both: at
    sharp edges that is up to 20 levels from one pass. Square images agree with PIL but for one
    level (seldom two) in fewer than 1 % of the pixels.
    """
    resized = images.float()
    for shape in ((images.shape[2], size), (size, size)):
        resized = F.interpolate(resized, size=shape, mode="bicubic", antialias=True)
        resized = resized.round().clamp(0, 255)
    return resized


def _find(published: Published, name: str) -> Path:
    """Path of the published file in torch's hub cache; downloads it when it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for candidate in published.names:
        # Path.is_file raises where the folder may not be read.
        if os.path.isfile(folder / candidate):
            return folder / candidate
    path = folder / published.names[0]
    log.info("features=%s: downloading %s to %s", name, published.url, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            published.url, str(path), hash_prefix=published.sha256, progress=False
        )
    # RuntimeError: another hash.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = f"the download failed ({first_line(error)}); {_ways_out(published)}"
        raise DataError(f"features={name} has no weights, {reason}") from error
    return path


def _check(path: Path, digest: str, expected: str | None) -> None:
    """The one place where the identity of a file is decided."""
    if expected is not None and digest != expected:
        raise CheckpointError(
            f"features.weights={path}: its SHA-256 is {digest}, expected {expected}: "
            "delete the file if it is damaged; "
            "features.sha256=null accepts any file and records its hash in the key"
        )


def _ways_out(published: Published) -> str:
    return (
        f"either set features.weights=PATH to the file {' or '.join(published.names)}, "
        f"or start once on a machine with network, which downloads {published.url}"
    )
