"""Speed of a training and where its time goes, on a clock that moves only where it is told to."""

import json

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler
from torch import nn

from src.callback import phases, throughput
from src.callback.checkpoint import Checkpoint
from src.callback.phases import CudaClock, HostClock, clock_of
from src.callback.throughput import Throughput
from src.dataset.base import ImageData
from src.logger.csv_logger import AtomicCSVLogger
from src.model.base import GenerativeModel
from src.rundir.history import is_time, read_history
from src.training.blank import blank_losses, flops_per_image
from src.training.data import ImageDataModule
from src.training.module import GenerativeModule

BATCH = 8
SIZES = (4, 6, 3)  # of a small network
FLOPS = 2 * (4 * 6 + 6 * 3)
# seconds of each phase, and how often in a step: once, or once per micro-batch
DATA, FORWARD, BACKWARD, OPTIMISER, WAITING, OTHER = 0.5, 2.0, 4.0, 1.0, 0.125, 0.25
VALIDATION, SAVING = 32.0, 16.0


class FakeClock:
    """Moves by ``tick`` alone; a mark can be read only once it was waited for."""

    def __init__(self):
        self.now = self.reached = 0.0
        self.waits = 0

    def tick(self, seconds):
        self.now += seconds

    def mark(self):
        return self.now

    def wait(self, mark):
        self.reached = mark
        self.waits += 1

    def seconds(self, begin, end):
        assert begin <= end <= self.reached
        return end - begin


class Images:
    """They take time when they are read."""

    def __init__(self, clock):
        self.clock = clock
        self.pixels = torch.zeros(32, 1, 2, 2, dtype=torch.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        self.clock.tick(DATA)
        return self.pixels[index]


class Slow(GenerativeModel):
    """A network whose forward and backward pass take time."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        wide, last = nn.Linear(*SIZES[:2]), nn.Linear(*SIZES[1:])
        self.network = nn.Sequential(nn.Flatten(), wide, nn.ReLU(), nn.Dropout(), last)

    def loss(self, x, label=None, generator=None):
        self.clock.tick(FORWARD)
        loss = self.network(x).square().mean()
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self.clock.tick(BACKWARD))
        return {"loss": loss}


class SlowSGD(torch.optim.SGD):
    """It takes time after gradients were computed."""

    clock = None

    def step(self, closure=None):
        loss = super().step(closure)
        self.clock.tick(OPTIMISER)
        return loss


class Others(pl.Callback):
    """What other callbacks do."""

    def __init__(self, clock):
        self.clock = clock
        self.saves = self.validations = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        with trainer.profiler.profile("waiting"):
            self.clock.tick(WAITING)

    def on_train_batch_end(self, trainer, *_):
        self.clock.tick(OTHER)

    def on_validation_epoch_end(self, trainer, pl_module):
        self.clock.tick(VALIDATION)
        self.validations += 1

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.clock.tick(SAVING)
        self.saves += 1


class EMA(pl.Callback):
    """It bears the name of the average, whose update belongs to the optimiser."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, *_):
        self.clock.tick(OPTIMISER)


@pytest.fixture
def clock(monkeypatch):
    made = FakeClock()
    monkeypatch.setattr(throughput, "clock_of", lambda device: made)
    monkeypatch.setattr(SlowSGD, "clock", made)
    return made


def fit(clock, folder, *more, steps=6, ckpt_path=None, **trainer):
    """Train, with a checkpoint at every validation; returns the trainer and what is watched."""
    data = ImageDataModule(
        lambda split: ImageData(Images(clock)), (1, 2, 2), global_batch_size=BATCH, seed=0
    )
    model = Slow(clock)
    speed, others = Throughput(), Others(clock)
    saving = Checkpoint(str(folder), "val/loss")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    made = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        num_sanity_val_steps=0,
        callbacks=[others, *more, speed, saving],
        **{**quiet, "limit_val_batches": 1, **trainer},
    )
    module = GenerativeModule(model, SlowSGD(model.parameters(), lr=0.1))
    made.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return made, speed, others


def of_steps(steps, accumulate=1, average=0.0):
    """Seconds of each phase of so many optimiser steps."""
    batches = steps * accumulate
    return {
        "data": DATA * batches,
        "forward": FORWARD * batches,
        "backward": BACKWARD * batches,
        "optimiser": OPTIMISER * steps + average * batches,
        "waiting": WAITING * steps,
        "other": OTHER * batches,
    }


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_second_is_counted_once_in_its_phase(clock, tmp_path, accumulate):
    settings = {"accumulate_grad_batches": accumulate, "val_check_interval": 2 * accumulate}
    _, speed, others = fit(clock, tmp_path, EMA(clock), **settings)
    assert others.validations == 3
    assert others.saves > 3
    training = of_steps(6, accumulate, average=OPTIMISER)
    validation = others.validations * (DATA + FORWARD + VALIDATION)
    around = {"validation": validation, "saving": others.saves * SAVING}
    spent = speed.spent()
    assert spent.seconds == training | around
    assert (spent.steps, spent.training) == (6, sum(training.values()))


def test_the_outcome_leaves_validation_and_saving_out_of_rates(clock, tmp_path):
    _, speed, _ = fit(clock, tmp_path, val_check_interval=2)
    seconds = sum(of_steps(6).values())
    outcome = speed.outcome()
    assert outcome["step_seconds"] == seconds
    assert outcome["images_per_second"] == 6 * BATCH / seconds
    assert outcome["time/ms_per_step"] == 1000 * seconds / 6
    shares = {name: value for name, value in outcome.items() if name.startswith("time/share_")}
    assert len(shares) == 8
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["time/share_forward"] / shares["time/share_data"] == FORWARD / DATA
    assert "time/mfu" not in outcome
    assert all(map(is_time, outcome))


def test_a_row_is_the_mean_since_the_last_one(clock, tmp_path):
    """Validation and saving come after step 4: they are seen in the second row alone."""
    logger = AtomicCSVLogger(str(tmp_path), name="", version="")
    settings = {"logger": logger, "log_every_n_steps": 3, "val_check_interval": 4, "steps": 7}
    fit(clock, tmp_path, **settings)
    logger.save()
    history = read_history(tmp_path)
    rate = BATCH / sum(of_steps(1).values())
    assert history["time/images_per_second"] == ([2, 5], [pytest.approx(rate)] * 2)
    assert history["time/images_per_second"][0] == history["train/loss"][0]
    steps, shares = history["time/share_validation"]
    assert steps == [2, 5]
    assert shares[0] == 0
    assert shares[1] > 0


def test_the_device_is_waited_for_at_the_log_interval_alone(clock, tmp_path):
    logger = AtomicCSVLogger(str(tmp_path), name="", version="")
    settings = {"log_every_n_steps": 2, "limit_val_batches": 0, "steps": 7}
    _, _, others = fit(clock, tmp_path, logger=logger, **settings)
    begin, rows, end = 1, 3, 1
    assert clock.waits == begin + rows + others.saves + end


def test_a_long_interval_does_not_pile_up_marks(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "MOST_MARKS", 10)
    _, speed, _ = fit(clock, tmp_path, steps=20, limit_val_batches=0)
    assert clock.waits > 10
    assert of_steps(20).items() <= speed.spent().seconds.items()


def test_totals_go_on_in_a_resumed_run(clock, tmp_path):
    _, whole, _ = fit(clock, tmp_path / "whole", steps=8)
    fit(clock, tmp_path / "parts", steps=4)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    _, parts, _ = fit(clock, tmp_path / "parts", steps=8, ckpt_path=last)
    assert parts.spent().steps == whole.spent().steps == 8
    assert parts.outcome()["step_seconds"] == whole.outcome()["step_seconds"]
    assert parts.outcome()["images_per_second"] == whole.outcome()["images_per_second"]


def test_use_of_the_peak(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: 5000)
    _, speed, _ = fit(clock, tmp_path)
    outcome = speed.outcome()
    assert outcome["time/mfu"] == pytest.approx(3 * FLOPS * outcome["images_per_second"] / 5000)


def test_operations_of_a_network_and_its_modes_afterwards():
    model = Slow(FakeClock())
    model.network[1].eval()
    assert flops_per_image(model, (1, 2, 2)) == FLOPS
    assert not blank_losses(model, (1, 2, 2))["loss"].requires_grad
    modes = [part.training for part in model.network]
    assert modes == [True, False, True, True, True]


def test_another_profiler_is_told_the_same_and_stays(clock, tmp_path):
    own = SimpleProfiler(dirpath=tmp_path, filename="report")
    trainer, _, _ = fit(clock, tmp_path, profiler=own)
    assert trainer.profiler is own
    assert len(own.recorded_durations["run_training_batch"]) == 6
    assert len(own.recorded_durations["waiting"]) == 6


def test_a_gpu_is_timed_by_events_in_its_queue(monkeypatch):
    """A stand-in for the queue: an event can be read when it was waited for."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.known = False

        def record(self, stream):
            self.at = stream.pop()

        def synchronize(self):
            self.known = True

        def elapsed_time(self, end):
            assert end.known
            return end.at - self.at

    queue = [1500.0, 1000.0]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: queue)
    clock = clock_of(torch.device("cuda", 0))
    assert isinstance(clock, CudaClock)
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    begin, end = clock.mark(), clock.mark()
    clock.wait(end)
    assert clock.seconds(begin, end) == 0.5


@pytest.mark.parametrize("timed", [True, False])
def test_a_run_tells_its_speed_unless_the_callback_is_left_out(cli, small, tmp_path, timed):
    words = [] if timed else ["callback.throughput=null"]
    settings = ["trainer.max_steps=2", "trainer.limit_train_batches=null", "metric=none"]
    settings += ["trainer.log_every_n_steps=1", "hydra.run.dir=run", "model=vae"]
    done = cli("train", *small, *settings, *words)
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    told = {"step_seconds", "images_per_second", "peak_memory_gib", "time/share_data"}
    assert (told & metrics.keys()) == (told if timed else set())
    assert ("time/share_data" in read_history(tmp_path / "run")) == timed
    for line in ("  speed    ", "  time     ", "  memory   "):
        assert (line in done.out) == timed
    assert (" images/s, " in done.out) == timed


def test_a_rehearsal_without_the_callback_tells_no_speed(cli, small):
    words = [word for word in small if "preflight" not in word and "max_steps" not in word]
    done = cli("train", *words, "model=vae", "metric=none", "callback.throughput=null")
    assert done.code == 0, done.err
    assert "speed       unknown: it takes callback.throughput and 5 steps" in done.out
