"""Means of losses over a validation: weighted by images, NaN kept, begun anew, in no checkpoint."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support import images
from torch import nn
from torch.utils.data import DataLoader

from src.dataset.base import Batch
from src.model.base import GenerativeModel
from src.noise import Seeds
from src.training.module import GenerativeModule

SIZES = (7, 7, 3)


class Given(GenerativeModel):
    """Its losses are the next of a list of values."""

    def __init__(self, values):
        super().__init__()
        self.values, self.weight = list(values), nn.Parameter(torch.zeros(()))

    def loss(self, x, label=None, generator=None):
        value = torch.tensor(self.values.pop(0))
        return {"loss": value, "half": value / 2}


class Cut(pl.Callback):
    """Cuts a validation off after two batches."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            raise KeyError("cut off")


def loader():
    batches = [Batch(images(num), None, Seeds([0] * num), np.arange(num)) for num in SIZES]
    return DataLoader(batches, batch_size=None)


def trainer(*callbacks):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    summary = {"enable_model_summary": False, "callbacks": list(callbacks)}
    return pl.Trainer(accelerator="cpu", **quiet, **summary)


def validated(values):
    fit = trainer()
    fit.validate(GenerativeModule(Given(values)), loader(), verbose=False)
    return {name: value.item() for name, value in fit.callback_metrics.items()}


@pytest.mark.parametrize("values", [(0.1, 0.7, 1.3), (1e-8, 3e7, -5.0), (1 / 3, 2 / 3, math.pi)])
def test_a_batch_counts_by_its_images_to_the_last_bit(values):
    """The sums are those that Lightning made before: of value times size, in float32."""
    total = torch.zeros(())
    for value, size in zip(values, SIZES, strict=True):
        total += torch.tensor(value) * size
    found = validated(values)
    assert found == {"val/loss": (total / sum(SIZES)).item(), "val/half": found["val/half"]}
    assert found["val/half"] == pytest.approx(found["val/loss"] / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(bad):
    found = validated((0.1, bad, 0.2))["val/loss"]
    assert math.isnan(found) if math.isnan(bad) else found == bad


def test_a_validation_that_was_cut_off_is_not_counted():
    module = GenerativeModule(Given([100.0, 100.0, 1.0, 2.0, 3.0]))
    fit = trainer(Cut())
    with pytest.raises(KeyError):
        fit.validate(module, loader(), verbose=False)
    fit.callbacks.clear()
    fit.validate(module, loader(), verbose=False)
    assert fit.callback_metrics["val/loss"].item() == pytest.approx((7 + 14 + 9) / 17)


def test_the_test_is_no_part_of_the_validation():
    module, fit = GenerativeModule(Given([1.0, 2.0, 3.0, 4.0, 4.0, 4.0])), trainer()
    fit.validate(module, loader(), verbose=False)
    fit.test(module, loader(), verbose=False)
    assert fit.callback_metrics["test/loss"].item() == 4
    assert module.state_dict().keys() == {"model.weight"}
