"""Networks compiled by torch (TorchInductor; Ansel et al. 2024, PyTorch 2)."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch
from torch import nn

MOST_SHAPES = 64  # of a network's input that are compiled; torch's own limit is 8


def compile_networks(model: nn.Module) -> None:
    """Let the parts of a model be compiled when they are first called; no name changes.

    In place, so that a checkpoint holds what it holds without. For every shape of input of its
    own: a kernel for all shapes has other rounding errors, and which of the two is used would
    depend on what was called before, so that a resumed run would not be exact.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA it need not have
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    for part in model.children():
        part.compile(dynamic=False)


class Compile(pl.Callback):
    """Compiles the networks of a run; on a CPU for training steps alone.

    Every shape of a validation or of samples would take a compilation of its own, which a CPU
    takes longer for than it gains there.
    """

    def __init__(self) -> None:
        self._eager = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile at the first call."""
        compile_networks(pl_module.model)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Use what was compiled."""
        if self._eager:
            self._set(eager=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do without, on a CPU."""
        if pl_module.device.type == "cpu":
            self._set(eager=True)

    on_test_start = on_validation_start

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the process as it was."""
        self._set(eager=False)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the process as it was."""
        self._set(eager=False)

    def _set(self, eager: bool) -> None:
        torch.compiler.set_stance("force_eager" if eager else "default")
        self._eager = eager
