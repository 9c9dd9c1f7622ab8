"""W&B's package, imported early and with its telemetry off."""

from __future__ import annotations

import os
from contextlib import suppress


def import_wandb() -> None:
    """Import wandb with all that ``wandb.init`` will import.

    Before torch it takes half as long: for each of its classes it looks through all modules that
    are imported. What is wrong with it is reported by whoever uses it.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # its own telemetry waits 20 s for a dead server at exit
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with suppress(ImportError):
        import wandb.apis.public  # noqa: F401
