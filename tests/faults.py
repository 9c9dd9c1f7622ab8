"""Faults for runs under test: a callback that kills, stops, stalls or poisons its own process.

PYTHONPATH=tests python -m src.train
    '+callback.fault={_target_:faults.Fault,step:7,where:batch_end,what:kill}'
"""

import csv
import os
import resource
import signal
import time

import pytorch_lightning as pl
import torch

from src.training.order import Batches

WHERE = (
    "batch_start",
    "after_backward",
    "before_step",
    "batch_end",
    "validation_start",
    "validation_batch",
    "validation_end",
    "save",
    "link",
    "loading",
    "rewrite",
    "test_start",
)


class Fault(pl.Callback):
    """Does ``what`` once, at the place ``where``, as soon as ``step`` optimiser steps are done."""

    def __init__(self, step, where, what="kill", rank=0):
        self.step, self.where, self.what, self.rank = step, where, what, rank
        assert where in WHERE

    def setup(self, trainer, pl_module, stage):
        self.trainer = trainer
        if stage != "fit" or self.where not in ("save", "link", "loading", "rewrite"):
            return
        if self.where == "loading":
            load = Batches.__getitem__

            def slow(batches, key):
                self._strike("loading")
                return load(batches, key)

            Batches.__getitem__ = slow
            return
        if self.where == "rewrite":
            rows = csv.DictWriter.writerows

            def half_of_them(writer, all_rows):
                rows(writer, list(all_rows)[: len(all_rows) // 2])
                self._strike("rewrite")
                rows(writer, list(all_rows)[len(all_rows) // 2 :])

            csv.DictWriter.writerows = half_of_them
        elif self.where == "save":
            write = torch.save

            def half(content, path, *more, **settings):
                write(content, path, *more, **settings)
                if self.what == "kill" and trainer.global_step >= self.step:
                    os.truncate(path, os.path.getsize(path) // 2)
                self._strike("save")

            torch.save = half
        else:
            link = os.link

            def before_link(*paths):
                self._strike("link")
                return link(*paths)

            os.link = before_link

    def on_train_batch_start(self, trainer, pl_module, batch, *_):
        self.poisoned = batch.x
        self._strike("batch_start")

    def on_after_backward(self, trainer, pl_module):
        self.poisoned = next(pl_module.parameters()).grad
        self._strike("after_backward")

    def on_before_optimizer_step(self, *_):
        self._strike("before_step")

    def on_train_batch_end(self, *_):
        self._strike("batch_end")

    def on_validation_start(self, trainer, *_):
        if trainer.state.fn == "fit":
            self._strike("validation_start")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
        if trainer.state.fn == "fit":
            self._strike("validation_batch")

    def on_validation_end(self, trainer, *_):
        if trainer.state.fn == "fit":
            self._strike("validation_end")

    def on_test_start(self, *_):
        self._strike("test_start")

    def _strike(self, where):
        if (
            where != self.where
            or self.trainer.global_step < self.step
            or self.trainer.global_rank != self.rank
        ):
            return
        self.where = None
        if self.what == "sleep":
            print("fault: sleep", flush=True)
            in_worker = torch.utils.data.get_worker_info() is not None
            time.sleep(60 if in_worker else 600)  # the end of a worker is waited for
            print("fault: over", flush=True)
        elif self.what == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
            torch.empty(2**34, dtype=torch.uint8)
        elif self.what == "poison":
            self.poisoned.view(-1)[0] = float("nan")
        elif self.what == "group":
            os.killpg(os.getpgid(0), signal.SIGTERM)
        else:
            os.kill(os.getpid(), getattr(signal, f"SIG{self.what.upper()}"))
