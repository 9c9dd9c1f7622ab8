"""A callback that keeps a run where it is until a test has done what it wants to do meanwhile."""

import time
from pathlib import Path

import pytorch_lightning as pl

from src.training.interruption import INTERRUPTION


class Hold(pl.Callback):
    """While the file is there, no step begins from the one that it names on.

    Unless the run is asked to stop.
    """

    def __init__(self, file):
        self.file = Path(file)

    def on_train_batch_start(self, trainer, *_):
        while INTERRUPTION.requested is None and self._holds(trainer.global_step):
            time.sleep(0.02)

    def _holds(self, step):
        try:
            return step >= int(self.file.read_text())
        except FileNotFoundError:
            return False


def holding(folder, number="seed"):
    """The word for runs that ``folder/hold-<number>`` holds."""
    own = f"${{oc.select:{number},none}}"  # a driver of a study has no sweep.trial
    return f"+callback.hold={{_target_:hold.Hold,file:'{folder}/hold-{own}'}}"
