"""A model from a run directory or a checkpoint file; only tensors and plain values are read."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from src.config.build import construct
from src.config.references import without_references
from src.config.untrusted import check_config, shown, values
from src.errors import CheckpointError, ProjectError, first_line
from src.files import open_regular
from src.model.base import GenerativeModel
from src.rundir.archive import damage_within, pickled
from src.rundir.pickled import ExcessError, check_pickle
from src.rundir.store import CheckpointStore, damage

log = logging.getLogger(__name__)

MAX_CONTENT = 1_000_000  # values in a checkpoint, optimiser and loops included
SHARING = 4  # bytes of tensors per byte of the file: average and weights may share memory
SPARE = 2  # parameters that building a model may make for each one of the checkpoint


def load_model(
    path: str | os.PathLike[str], trusted_packages: Collection[str] = ()
) -> GenerativeModel:
    """The trained model of a run directory (its last state) or a .ckpt file, with EMA weights.

    In eval mode, on the CPU. Nothing in the file is run: see ``read_checkpoint``. Raises
    CheckpointError when it is missing, damaged, refused, or does not fit the model that its config
    describes.

    Arguments:
        path: directory or file.
        trusted_packages: whose classes the model may be made of, beside this project's.
    """
    checkpoint = read_checkpoint(path, trusted=trusted_packages)
    return restore(checkpoint["config"]["model"], checkpoint)


def find_checkpoint(path: str | os.PathLike[str], setting: str = "ckpt_path") -> Path:
    """The checkpoint file at ``path``: itself, or the newest undamaged one of a run directory.

    The path may be a link, since somebody typed it; links inside a run directory are not followed.
    """
    if "://" in str(path):
        raise CheckpointError(
            f"{setting}={path}: addresses are refused; download the file and give its path"
        )
    found = Path(os.path.expanduser(path))
    if found.is_dir():
        candidates = CheckpointStore(found / "checkpoints").candidates()
        if not candidates:
            raise CheckpointError(
                f"{setting}={path}: the directory has no checkpoints/step-<step>.ckpt"
            )
        return _newest_whole(candidates, f"{setting}={path}")
    if not found.is_file():
        raise CheckpointError(f"{setting}={path}: no such file or run directory")
    return found.resolve() if found.is_symlink() else found


def _newest_whole(candidates: list[Path], setting: str) -> Path:
    """The first that is undamaged; raises CheckpointError where none is."""
    for candidate in candidates:
        found = damage(candidate)
        if not found:
            return candidate
        log.warning(
            "warning: checkpoint %s is damaged (%s); going back to the one before", candidate, found
        )
    raise CheckpointError(
        f"{setting}: all its checkpoints are damaged ({', '.join(c.name for c in candidates)})"
    )


def read_checkpoint(
    path: str | os.PathLike[str], setting: str = "ckpt_path", trusted: Collection[str] = ()
) -> dict[str, Any]:
    """Content of a checkpoint written by ``train``, on the CPU: plain values and tensors.

    Whoever wrote the file, what comes back may be used: checksums were verified, it was read with
    ``weights_only=True``, tensors and values are no more than a file of its size can hold, and the
    nodes of its configuration that are built later name nothing but parts of this project or of
    ``trusted`` packages. References in it have been followed. Raises CheckpointError otherwise.
    """
    found = find_checkpoint(path, setting)
    checkpoint = _loaded(found, f"{setting}={found}")
    try:
        _check_content(checkpoint, found.stat().st_size)
        check_config(checkpoint["config"], trusted)
        checkpoint["config"] = without_references(checkpoint["config"])
        OmegaConf.create(checkpoint["config"])  # which parses every string that was typed
    except (RecursionError, OmegaConfBaseException) as error:
        why = f"refused, its config is malformed ({first_line(error)})"
        raise CheckpointError(f"{setting}={found}: {why}") from error
    except ValueError as error:
        raise CheckpointError(f"{setting}={found}: refused, it {error}") from error
    return checkpoint


def _loaded(path: Path, setting: str) -> dict[str, Any]:
    """What torch reads without running anything; raises CheckpointError ``<setting>: ...``."""
    try:
        with open_regular(path) as file:
            wrong = damage_within(file)
            if wrong:
                raise ValueError(wrong)
            check_pickle(pickled(file))
            checkpoint = _load(file)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        why = "refused, it holds more than tensors and plain values"
        raise CheckpointError(f"{setting}: {why}") from error
    except ExcessError as error:
        raise CheckpointError(f"{setting}: refused, it {error}") from error
    except Exception as error:  # foreign files fail in pickle, zip or torch
        why = f"not a checkpoint, or a damaged one ({first_line(error)})"
        raise CheckpointError(f"{setting}: {why}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= checkpoint.keys():
        why = "not written by this project (no config or no weights in it)"
        raise CheckpointError(f"{setting}: {why}")
    return checkpoint


def _load(file: BinaryIO) -> Any:  # noqa: ANN401 (whatever a file can hold)
    """What torch makes of a file that was looked at."""
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is refused in the next line
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_content(checkpoint: dict[str, Any], size: int) -> None:
    """Raise ValueError unless weights are named tensors, and all fit into ``size`` bytes."""
    total = 0
    for value in values(checkpoint, MAX_CONTENT):
        if isinstance(value, Tensor):
            known = (
                type(value) in (Tensor, nn.Parameter)
                and value.layout is torch.strided
                and not value.is_quantized
            )
            if not known or value.device.type != "cpu":
                raise ValueError("holds a tensor of a kind that is not trained here")
            total += value.nbytes
    if total > SHARING * size:
        raise ValueError(f"claims {total} bytes of tensors in a file of {size}")
    for weights in (checkpoint["state_dict"], checkpoint.get("ema", {})):
        named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
        if not named or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("holds weights that are not tensors with names")
    if not isinstance(checkpoint.get("global_step"), int):
        raise ValueError("does not say after which step it was written")


def restore(node: dict[str, Any], checkpoint: dict[str, Any]) -> GenerativeModel:
    """Build the model of ``node``, as in the checkpoint's config, and load its weights.

    checkpoint: as ``read_checkpoint`` returned it. Raises CheckpointError where the two do not fit.
    """
    try:
        with _no_larger_than(checkpoint["state_dict"]):
            plain = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
            model = construct(plain, "model")
    except ProjectError:
        raise
    except Exception as error:
        why = f"the model of the checkpoint cannot be built: {first_line(error)}"
        raise CheckpointError(why) from error
    if not isinstance(model, GenerativeModel):
        raise CheckpointError(
            f"the checkpoint describes {shown(type(model).__name__)}, which is no model"
        )
    load_weights(model, checkpoint)
    return model.eval()


@contextmanager
def _no_larger_than(weights: dict[str, Tensor]) -> Iterator[None]:
    """Raise CheckpointError as soon as the block makes many more parameters than ``weights`` has.

    Their memory is reserved by then, but nothing is written into it yet.
    """
    held = sum(value.numel() for value in weights.values())
    left = SPARE * held

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        left -= max(1, parameter.numel())
        if left < 0:
            raise CheckpointError(
                f"the checkpoint holds another model: its config describes more than {held} weights"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_weights(model: GenerativeModel, checkpoint: dict[str, Any]) -> None:
    """Put the checkpoint's weights into ``model``, the averaged (EMA) ones where there are any."""
    prefix = "model."
    weights = {
        k.removeprefix(prefix): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith(prefix)
    }
    weights |= checkpoint.get("ema", {})
    own = model.state_dict()
    expected = _forms(own)
    found = _forms(weights)
    wrong = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
    if wrong:
        target = shown(checkpoint["config"]["model"].get("_target_"))
        how_many = f"{len(wrong)} of {len(own)} weights"
        why = f"{how_many} are missing, unknown or of another shape, first {shown(min(wrong))}"
        raise CheckpointError(f"the checkpoint holds another model ({target}): {why}")
    model.load_state_dict(weights)


def _forms(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each weight."""
    return {name: (value.shape, value.dtype) for name, value in state.items()}
