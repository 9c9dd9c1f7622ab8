"""The loops that benchmarks/step.py times: ours, bare ones, and those of peers.

Each gives seconds per optimiser step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

ROOT = Path(__file__).resolve().parents[1]
QUIET = (
    "logger=csv",
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.accelerator=cpu"),
)
Words = tuple[str, ...]


def many(split: str, **_: str) -> object:
    """20,000 images of 8x8 random pixels to train on, a few for the rest."""
    return _random(split, 20_000, (1, 8, 8))


def coloured(split: str, **_: str) -> object:
    """1,000 images of 32x32 random pixels in three colours to train on, a few for the rest."""
    return _random(split, 1_000, (3, 32, 32))


def _random(split: str, num: int, shape: tuple[int, ...]) -> object:
    from src.dataset.base import ImageData

    size = num if split == "train" else 64
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=draw)
    return ImageData(images, torch.zeros(size, dtype=torch.long))


def composed(words: Words) -> Any:  # noqa: ANN401
    """The configuration of ``src.train`` with these words."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*words, "run_dir=unused"])


def ours(words: Words, steps: int) -> float:
    """Seconds per step of the program, by its own metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        more = (*QUIET, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}/run")
        command = [sys.executable, "-m", "src.train", *words, *more]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(folder, "run", "metrics.json").read_text())["step_seconds"] / steps


class Bare:
    """Model, optimiser and images in memory, as the configuration says."""

    def __init__(self, words: Words) -> None:
        from src.config.build import build
        from src.dataset.base import to_float

        cfg = composed(words)
        self.model = build(cfg, "model")
        self.optimizer = build(cfg, "optimizer")(list(self.model.parameters()))
        self.size = cfg.dataset.global_batch_size
        self.images = to_float(build(cfg, "dataset.load")(split="train").images[:])

    def batches(self, steps: int) -> Iterator[Tensor]:
        """Batches of shuffled epochs."""
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < self.size:
                order = torch.randperm(len(self.images))
            yield self.images[order[: self.size]]
            order = order[self.size :]

    def seconds(self, batches: Iterable[Tensor], steps: int) -> float:
        """Per step, where each of ``batches`` is one: nothing that training does not need."""
        begin = time.perf_counter()
        for x in batches:
            self.optimizer.zero_grad()
            self.model.loss(x)["loss"].backward()
            self.optimizer.step()
        return (time.perf_counter() - begin) / steps


def bare(words: Words, steps: int) -> float:
    """Seconds per step of a loop with nothing in it that training does not need."""
    task = Bare(words)
    return task.seconds(task.batches(steps), steps)


def lightning(words: Words, steps: int) -> float:
    """Seconds per step of Lightning's own loop: the same model, no callback, logger or check."""
    import pytorch_lightning as pl

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return task.batches(len(task.images) // task.size)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model

        def training_step(self, x: Tensor, index: int) -> Tensor:
            return self.model.loss(x)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer

        def on_train_start(self) -> None:
            self.begin = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.begin

    task = Bare(words)
    nothing = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    module = Module()
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, **dict.fromkeys(nothing, False))
    trainer.fit(module, DataLoader(Batches(), batch_size=None))
    return module.seconds / steps


def torchvision(words: Words, steps: int) -> float:
    """The bare loop over torchvision's data set of images, through its usual transform."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    task, root = Bare(words), composed(words).dataset.root
    data = DataLoader(MNIST(root, transform=ToTensor()), task.size, shuffle=True, drop_last=True)
    return task.seconds((2 * x - 1 for x, _ in islice(data, steps)), steps)


def pythae(words: Words, steps: int) -> float:
    """An epoch of pythae's trainer on its VAE of the same layers, with its own way of logging."""
    import pythae.pipelines.training as pipelines
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    spent = []

    class Timed(BaseTrainer):
        def train_step(self, epoch: int) -> object:
            begin = time.perf_counter()
            result = super().train_step(epoch)
            spent.append(time.perf_counter() - begin)
            return result

    images = (Bare(words).images + 1) / 2
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(folder, per_device_train_batch_size=128, num_epochs=1)
        model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=8, reconstruction_loss="bce"))
        pipelines.BaseTrainer = Timed
        pipeline = pipelines.TrainingPipeline(model=model, training_config=config)
        pipeline(train_data=images[: 128 * steps])
    return spent[0] / steps


def diffusers(words: Words, steps: int) -> float:
    """The bare loop with the U-Net of diffusers, of the same blocks."""
    from diffusers import UNet2DModel

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = UNet2DModel(
                **{"sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2},
                block_out_channels=(64, 128, 128, 128),
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                **{"attention_head_dim": None, "norm_num_groups": 16, "downsample_padding": 1},
            )

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t).sample

    task = Bare(words)
    task.model.network = Network()
    task.optimizer = torch.optim.AdamW(task.model.parameters(), fused=True)
    return task.seconds(task.batches(steps), steps)
