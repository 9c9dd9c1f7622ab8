"""How checkpoints reach the disk: whole or not at all, finite, with their configuration inside."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from src.config.untrusted import children
from src.errors import NonFiniteError, StorageError
from src.files import atomic_path
from src.rundir.checkpoint import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; Lightning itself can leave half a file there.

    Arguments:
        config: the run's configuration as plain values, ``config`` in every checkpoint.
        trusted: packages that the configuration of a checkpoint may name.
    """

    def __init__(self, config: dict[str, Any], trusted: Collection[str] = ()) -> None:
        super().__init__()
        self.config = config
        self.trusted = trusted

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: _PATH,
        storage_options: Any = None,  # noqa: ANN401 (Lightning's)
    ) -> None:
        """Write the checkpoint atomically.

        Raises NonFiniteError where weights are not finite, StorageError when the disk refuses.
        """
        for name, value in checkpoint.get("state_dict", {}).items():
            if value.is_floating_point() and not _finite(value):
                step = checkpoint.get("global_step")
                raise NonFiniteError(
                    f"{name}: holds NaN or infinity after step {step}; the last checkpoint is kept"
                )
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint | {"config": self.config}, temporary)
            except RuntimeError as error:  # torch's writer hides the system's reason
                # torch reports a lost worker wherever the program stands
                if "DataLoader worker" in str(error):
                    raise
                need = _megabytes(checkpoint)
                free = shutil.disk_usage(temporary.parent).free / 1e6
                reason = f"about {need:.0f} MB needed, {free:.0f} MB free; free some space"
                raise StorageError(f"cannot write {Path(path)}: {reason}") from error

    def load_checkpoint(
        self, path: _PATH, map_location: object = None, weights_only: object = None
    ) -> dict[str, Any]:
        """The content on the CPU, checked; Lightning takes some paths for addresses."""
        return read_checkpoint(path, trusted=self.trusted)


def _finite(value: Tensor) -> bool:
    """Whether all values are finite; a finite sum proves it, in a tenth of the time."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _megabytes(content: object) -> float:
    """Of all tensors in nested dictionaries and lists."""
    if isinstance(content, Tensor):
        return content.nbytes / 1e6
    return sum(map(_megabytes, children(content)))
