"""A process that runs a model: quiet, and gone with the one that started it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent is gone
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
NOT_NEWS = (  # warnings of Lightning and torchmetrics about choices that are ours
    "does not have many workers",
    "exists and is not empty",
    "logging interval",
    "LeafSpec",
    "Grad strides",
    "sync_dist=True",  # what is logged without is the same on all ranks
    "srun. command is available",
    "will save all extracted features in buffer",
)


def end_with_parent(signum: int) -> None:
    """Get ``signum`` when the parent of this process dies; on Linux alone."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signum)


def prepare_process() -> None:
    """Silence Lightning where the choice is ours; a rank ends with the rank that has started it."""
    for name in (
        "pytorch_lightning",
        "lightning_fabric",
    ):  # they switch their notices on themselves
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    import torch  # not for the launcher, which uses this module too

    if not torch.cuda.is_available():
        # Lightning has torch look for NVIDIA's library whenever it asks for a GPU, and Adam asks
        # at every step
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for text in NOT_NEWS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_parent(signal.SIGKILL)
