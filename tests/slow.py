"""A callback that makes steps long enough to be interrupted from outside."""

import time

import pytorch_lightning as pl


class Slow(pl.Callback):
    """Sleeps before each step."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_batch_start(self, *_):
        time.sleep(self.seconds)
