"""A model back from a run directory or a checkpoint file; only tensors and plain values are read."""

from __future__ import annotations

import importlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.errors import CheckpointError, ProjectError, first_line
from src.model.base import GenerativeModel

BUILDABLE = {"model", "network", "schedule", "sampler", "prediction", "weighting", "likelihood", "beta"}


def load_model(path: str | os.PathLike[str]) -> GenerativeModel:
    """The trained model of a run directory (its last state) or a .ckpt file, in eval mode on the CPU, with EMA weights.

    Reads with ``weights_only=True`` and builds only classes and functions defined below ``src.``. Raises
    CheckpointError when the file is missing, damaged, refused, or does not fit the model that its config describes.
    """
    checkpoint = read_checkpoint(path)
    return restore(checkpoint["config"]["model"], checkpoint)


def find_checkpoint(path: str | os.PathLike[str], setting: str = "ckpt_path") -> Path:
    """The checkpoint file that ``path`` means: itself, or ``checkpoints/last.ckpt`` of a run directory."""
    if "://" in str(path):
        raise CheckpointError(f"{setting}={path}: addresses are refused; download the file and give its path")
    found = Path(path).expanduser()
    if found.is_dir():
        found = found / "checkpoints" / "last.ckpt"
        if not found.is_file():
            raise CheckpointError(f"{setting}={path}: the run directory has no checkpoints/last.ckpt")
    if not found.is_file():
        raise CheckpointError(f"{setting}={path}: no such file or run directory")
    return found


def read_checkpoint(path: str | os.PathLike[str], setting: str = "ckpt_path") -> dict[str, Any]:
    """Content of a checkpoint written by ``train``, on the CPU: plain values and tensors, checksums verified."""
    found = find_checkpoint(path, setting)
    try:
        with zipfile.ZipFile(found) as archive:  # torch.load itself ignores the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{setting}={found}: the file is damaged (checksum of {damaged})")
        checkpoint = torch.load(found, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{setting}={found}: not a checkpoint, or a damaged one ({first_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{setting}={found}: refused, it holds more than tensors and plain values") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= checkpoint.keys():
        raise CheckpointError(f"{setting}={found}: not written by this project (no config or no weights in it)")
    return checkpoint


def restore(node: dict[str, Any], checkpoint: dict[str, Any]) -> GenerativeModel:
    """Build the model that ``node`` describes (a plain dict with ``_target_``) and load the checkpoint's weights."""
    _refuse_foreign(node)
    try:
        model = instantiate(OmegaConf.create(node), _convert_="all")
    except ProjectError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ProjectError):
            raise cause from error
        raise CheckpointError(f"the model of the checkpoint cannot be built: {first_line(cause)}") from error
    load_weights(model, checkpoint)
    return model.eval()


def load_weights(model: GenerativeModel, checkpoint: dict[str, Any]) -> None:
    """Put the checkpoint's weights into ``model``, the averaged (EMA) ones where there are any."""
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    weights |= checkpoint.get("ema", {})
    own = model.state_dict()
    wrong = [
        k for k in own.keys() | weights.keys() if k not in own or k not in weights or own[k].shape != weights[k].shape
    ]
    if wrong:
        raise CheckpointError(
            f"the checkpoint holds another model ({checkpoint['config']['model'].get('_target_')}): "
            f"{len(wrong)} of {len(own)} weights are missing, unknown or of another shape, first {min(wrong)}"
        )
    model.load_state_dict(weights)


def _refuse_foreign(node: object) -> None:
    """Raise CheckpointError unless every ``_target_`` is the canonical name of something of ours that builds models."""
    if isinstance(node, dict):
        if "_target_" in node and not _is_ours(node["_target_"]):
            raise CheckpointError(
                f"refused checkpoint: it wants to build {node['_target_']!r}, which is not a model part"
            )
        for value in node.values():
            _refuse_foreign(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_foreign(value)
    elif isinstance(node, str) and "${" in node:
        raise CheckpointError(f"refused checkpoint: its config has an unresolved value {node!r}")


def _is_ours(target: object) -> bool:
    parts = str(target).split(".")
    if len(parts) < 3 or parts[0] != "src" or parts[1] not in BUILDABLE:
        return False
    try:
        module = importlib.import_module(".".join(parts[:-1]))
    except ImportError:
        return False
    return getattr(getattr(module, parts[-1], None), "__module__", None) == module.__name__
