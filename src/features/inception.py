"""Features of the published FID: Inception-v3 of 2015-12-05, pool layer, TensorFlow-compatible (Heusel et al. 2017).

The network is torch-fidelity's, which loads its weights unchecked; here they are read once, checked, and handed over.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from src.errors import CheckpointError, DataError
from src.features.base import Features
from src.files import content_hash

log = logging.getLogger(__name__)

FILE_NAME = (
    "pt_inception-2015-12-05-6726825d.pth"  # as pytorch-fid publishes it; torch-fidelity's name: weights-inception-...
)
PINNED_SHA256 = "6726825d"  # first hexadecimal digits, as published in the file name


class Inception(Features):
    """2048 features of images of any size, resized to 299 x 299 inside; grey images are repeated to three channels.

    weights: path of the weight file (any converted copy: its hash is part of the key); null: the published file from
    torch's hub cache, downloaded there once. Raises DataError when there is none, CheckpointError for another file.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        path = _published() if weights is None else Path(weights).expanduser()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"features.weights={path}: cannot be read ({error.strerror}); {_ways_out()}") from error
        digest = hashlib.sha256(content).hexdigest()
        if weights is None:
            _check_pin(path, digest)
        self._key = content_hash(self.name, str(self.num_features), digest)
        self.network = _build(content, path)

    @property
    def key(self) -> str:
        """Hash of the weight file and the layer."""
        return self._key

    def _extract(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise ValueError(f"features=inception takes images with 1 or 3 channels, these have {channels}")
        return self.network(images.expand(-1, 3, -1, -1))[0]


def _build(content: bytes, path: Path) -> FeatureExtractorInceptionV3:
    """The network with checked weights.

    torch-fidelity unpickles whatever it is given, so it gets what we wrote ourselves from a safely loaded state dict:
    no code in the file can run, and the file cannot change between check and use.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        checked = io.BytesIO()
        torch.save(dict(state), checked)
        checked.seek(0)
        with torch.random.fork_rng(devices=[]):  # the random initial weights must not move the run's random numbers
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=checked)
    except MemoryError:
        raise
    except Exception as error:  # foreign files fail in pickle, zip or torch
        reason = (str(error).splitlines() or [""])[0]
        message = f"features.weights={path}: not a weight file of this network ({type(error).__name__}: {reason})"
        raise CheckpointError(message) from error


def _published() -> Path:
    """Path of the published file in torch's hub cache; downloads it when it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / URL_INCEPTION_V3.rsplit("/", 1)[-1]
    for candidate in (path, folder / FILE_NAME):
        if os.path.isfile(candidate):  # Path.is_file raises where the folder may not be read
            return candidate
    log.info("features=inception: downloading %s to %s", URL_INCEPTION_V3, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PINNED_SHA256, progress=False)
    except (
        OSError,
        http.client.HTTPException,
        RuntimeError,
    ) as error:  # RuntimeError: the hash is not the published one
        raise DataError(f"features=inception has no weights, the download failed ({error}); {_ways_out()}") from error
    return path


def _check_pin(path: Path, digest: str) -> None:
    """The one place where the identity of the published file is decided."""
    if not digest.startswith(PINNED_SHA256):
        raise CheckpointError(f"{path}: SHA-256 starts with {digest[:8]}, expected {PINNED_SHA256}: delete the file")


def _ways_out() -> str:
    return (
        f"either set features.weights=PATH to the file {FILE_NAME}, "
        f"or start once on a machine with network, which downloads {URL_INCEPTION_V3}"
    )
