"""How checkpoints reach the disk: whole or not at all, with the configuration of the run inside."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.plugins.io import TorchCheckpointIO

from src.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; Lightning's own write can leave half a file under the final name.

    config: the run's resolved configuration as plain values; it goes into every checkpoint as ``config``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write the checkpoint atomically. Raises StorageError when the disk refuses."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint | {"config": self.config}, temporary)
