"""Features of real images, computed once and cached under a hash of all that determines them."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.dataset.base import ImageData
from src.errors import StorageError, first_line
from src.features.base import Features
from src.files import atomic_path, content_hash
from src.metric.base import Reference
from src.metric.frechet import Moments
from src.parallel.ranks import Progress, gather, rank_and_world, share_work
from src.report.progress import shown

log = logging.getLogger(__name__)
# part of the key: count up whenever what is stored or how it is computed changes
RECIPE = "reference-1"
BATCH = 256


def reference_of(
    features: Features,
    data: ImageData,
    cache_dir: str | os.PathLike[str] | None,
    decomposed: bool = True,
) -> Reference:
    """Features of all images of a split: in order, unflipped, complete, on every rank.

    The key of the cache is a hash of the images' bytes and of the features' own key, so a changed
    data set, split, transform or weight file never meets what was stored for another. A cache that
    cannot be read or written costs time, nothing else.

    Arguments:
        features: images -> vectors.
        data: the split.
        cache_dir: null for no cache.
        decomposed: keep moments and eigenvectors in the cache as well; two images are needed.
    """
    path = None
    if cache_dir is not None:
        path = Path(cache_dir).expanduser() / f"reference-{_key(features, data)}.npz"
    found = None if path is None else _load(path)
    # one rank alone cannot compute: all of them have found it, or all compute
    if all(gather({rank_and_world()[0]: found is not None})):
        return found
    made = Reference(features_of(features, data, shown("features of real images")))
    if path is not None and rank_and_world()[0] == 0:
        _save(path, made, made.moments if decomposed else None)
    return made


def features_of(features: Features, data: ImageData, progress: Progress | None = None) -> Tensor:
    """Features (N, d) float32 of all images of a split, on every rank's CPU; the work is shared."""

    def of_block(block: range) -> Tensor:
        return features(data.images[torch.arange(block.start, block.stop)]).cpu()

    return torch.cat(share_work(len(data), BATCH, of_block, progress))


def _key(features: Features, data: ImageData) -> str:
    def of_block(block: range) -> str:
        images = data.images[torch.arange(block.start, block.stop)]
        return content_hash(repr(tuple(images.shape)), images.numpy().tobytes())

    return content_hash(RECIPE, features.key, *share_work(len(data), BATCH, of_block))


def _load(path: Path) -> Reference | None:
    try:
        with np.load(path, allow_pickle=False) as file:  # checks the checksum of what it reads
            stored = {name: torch.from_numpy(file[name]) for name in file.files}
        reference = Reference(stored["features"])
        if "root" in stored:  # as if they had been computed here
            moments = Moments(stored["mean"], stored["cov"], len(reference.features))
            vars(moments)["root"] = stored["root"]
            vars(reference)["moments"] = moments
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = first_line(error)
        log.warning("reference features: cannot use %s, computing them again (%s)", path, reason)
        return None
    return reference


def _save(path: Path, reference: Reference, moments: Moments | None) -> None:
    tensors = {"features": reference.features}
    if moments is not None:
        tensors |= {"mean": moments.mean, "cov": moments.cov, "root": moments.root}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except StorageError as error:
        text = "reference features: not cached, the next evaluation computes them again (%s)"
        log.warning(text, first_line(error))
