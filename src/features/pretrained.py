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
        check_digest(sha256)
        super().__init__()
        path = _find(published, self.name) if weights is None else Path(weights).expanduser()
        file = WeightFile(path, "features", published, sha256, _ways_out(published))
        self._key = content_hash(self.recipe, file.digest)
        pinned = file.digest == published.sha256
        self.network = file.build(lambda: build(self._read(file, pinned)))

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

    def _read(self, file: WeightFile, pinned: bool) -> State:
        """The state dict in a file; pinned: it is the published file, byte for byte."""
        return file.state()


class WeightFile:
    """A file of weights, read once and checked before anything in it is looked at.

    Raises DataError when there is no file, CheckpointError when it is another one.

    Arguments:
        path: of the file.
        setting: the node whose ``weights`` and ``sha256`` are named in errors.
        published: the file that is expected.
        sha256: ``published``, 64 hexadecimal digits, or None for any file.
        advice: what to do where it cannot be read.
    """

    def __init__(
        self, path: Path, setting: str, published: Published, sha256: str | None, advice: str
    ) -> None:
        self.name, self.setting = f"{setting}.weights={path}", setting
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}); {advice}") from error
        self.digest = hashlib.sha256(self.content).hexdigest()
        self._check(published.sha256 if sha256 == "published" else sha256)

    def state(self) -> State:
        """The state dict in the file."""
        stream = io.BytesIO(self.content)
        return dict(torch.load(stream, map_location="cpu", weights_only=True))

    def build(self, build: Callable[[], nn.Module]) -> nn.Module:
        """What ``build`` makes of the file, frozen; CheckpointError where it makes nothing."""
        try:
            # random initial weights must not move the run's random numbers
            with torch.random.fork_rng(devices=[]):
                return build().requires_grad_(False)
        except MemoryError:
            raise
        except Exception as error:  # foreign files fail in pickle, zip or torch
            reason = f"{type(error).__name__}: {first_line(error)}"
            message = f"{self.name}: cannot be read as weights of this network ({reason})"
            raise CheckpointError(message) from error

    def _check(self, expected: str | None) -> None:
        """The one place where the identity of a file is decided."""
        if expected is not None and self.digest != expected:
            found = f"its SHA-256 is {self.digest}, expected {expected}"
            advice = f"{self.setting}.sha256=null accepts any file and records its hash"
            raise CheckpointError(
                f"{self.name}: {found}: delete the file if it is damaged; {advice}"
            )


def check_digest(sha256: str | None) -> None:
    """Raise ConfigError unless this says which file is expected."""
    digits = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
    allowed = "must be published, 64 hexadecimal digits (lower case), or null for any file"
    require(digits or sha256 in (None, "published"), "sha256", sha256, allowed)


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


def _ways_out(published: Published) -> str:
    return (
        f"either set features.weights=PATH to the file {' or '.join(published.names)}, "
        f"or start once on a machine with network, which downloads {published.url}"
    )
