"""Which process of a run this is, before anything is connected."""

from __future__ import annotations

import os

OTHER_THAN_0 = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this process is rank 0, or the only one, by the variables of its launcher."""
    return all(os.environ.get(name, "0") == "0" for name in OTHER_THAN_0)
