"""The training step: what it logs, and that it waits for the device no more often than it must."""

import shutil
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from conftest import options
from runs import MODELS, SHORT
from torch import nn
from torch.utils.data import DataLoader

from src.dataset.base import Batch
from src.logger.loggers import loggers_of
from src.model.base import GenerativeModel
from src.noise import Rows
from src.parallel.compile import Compile, compile_networks
from src.rundir.history import read_history
from src.training.assembly import assemble
from src.training.module import GenerativeModule

WAITS = ("item", "cpu", "tolist", "__bool__", "__float__", "__int__", "__index__")
INTERVAL, STEPS = 5, 15


class Waits(pl.Callback):
    """Counts by optimiser step how often the host asks for numbers of a tensor."""

    def __init__(self, monkeypatch):
        self.patch, self.by_step, self.now = monkeypatch, {}, Counter()

    def on_train_start(self, trainer, pl_module):
        for name in WAITS:
            self.patch.setattr(torch.Tensor, name, self.counting(name))

    def counting(self, name):
        original = getattr(torch.Tensor, name)

        def counted(*args, **kwargs):
            self.now[name] += 1
            return original(*args, **kwargs)

        return counted

    def on_train_batch_end(self, trainer, *_):
        """Micro-batches belong to their optimiser step."""
        step = trainer.global_step
        self.by_step[step] = self.by_step.get(step, Counter()) + self.now
        self.now = Counter()


def fit(cfg, *callbacks):
    assembly = assemble(cfg)
    assembly.trainer.callbacks[:0] = callbacks
    assembly.trainer.loggers = loggers_of(cfg, assembly.config, 0)
    assembly.trainer.fit(assembly.module, assembly.data)
    return assembly


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_a_step_asks_the_device_once(composed, monkeypatch, model, accumulate):
    """Only whether it was finite; at the log interval numbers are read besides."""
    cfg = composed(
        *(*MODELS[model], *SHORT, "callback.generation=null", "+callback/ema=null"),
        *(f"trainer.max_steps={STEPS}", f"trainer.log_every_n_steps={INTERVAL}"),
        *("trainer.val_check_interval=1000", "callback.checkpoint.every_steps=null"),
        "dataset.global_batch_size=48",  # more steps in an epoch than are counted
        *(f"trainer.accumulate_grad_batches={accumulate}", "trainer.accelerator=cpu"),
    )
    waits = Waits(monkeypatch)
    fit(cfg, waits)
    quiet = [step for step in range(2, STEPS) if step % INTERVAL > 1]
    found = {step: dict(waits.by_step[step]) for step in quiet}
    assert found == {step: {"item": 1} for step in quiet}


class Synchronised(pl.Callback):
    """Has torch warn of every wait for the GPU from the second step on."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("model", MODELS)
def test_a_step_on_a_gpu_does_not_wait_for_it(composed, recwarn, model):
    """The question of ``Finite`` waits for an event, which torch does not count."""
    cfg = composed(
        *(*MODELS[model], *SHORT, "callback.generation=null", "callback=[finite,lr_monitor]"),
        *(f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1000"),
        *("trainer.val_check_interval=1000", "dataset.global_batch_size=48"),
        *("trainer.accelerator=gpu", "optimizer.fused=true"),
    )
    fit(cfg, Synchronised())
    assert not [one for one in recwarn if "synchroniz" in str(one.message)]


class Numbered(GenerativeModel):
    """Its loss at micro-batch n is n."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(())), 0

    def loss(self, x, label=None, generator=None):
        if not self.training:
            return {"loss": self.weight}
        self.calls += 1
        return {"loss": self.weight + self.calls}


def batch(first):
    return Batch(torch.zeros(2, 1, 1, 1), None, Rows((0,), first, first + 2, 8), torch.arange(2))


def test_what_is_logged_is_the_mean_over_the_optimiser_step():
    logged = {}

    class Read(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            value = trainer.callback_metrics.get("train/loss")
            logged.setdefault(trainer.global_step, None if value is None else float(value))

    model = Numbered()
    module = GenerativeModule(model, torch.optim.SGD(model.parameters(), lr=0.0))
    trainer = pl.Trainer(
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False),
        **{"accelerator": "cpu", "callbacks": [Read()], "enable_model_summary": False},
        **{"max_steps": 5, "accumulate_grad_batches": 4, "log_every_n_steps": 2},
    )
    trainer.fit(module, DataLoader([batch(2 * (n % 4)) for n in range(20)], batch_size=None))
    assert logged[1] is None
    assert logged[2] == (5 + 6 + 7 + 8) / 4
    assert logged[3] == logged[2]
    assert logged[4] == (13 + 14 + 15 + 16) / 4
    assert logged[5] == (17 + 18 + 19 + 20) / 4, "the last step is logged, whatever the interval"


def test_a_batch_moves_itself_and_is_not_looked_into():
    from lightning_fabric.utilities.apply_func import move_data_to_device

    given = batch(0)
    moved = move_data_to_device(given, torch.device("meta"))
    assert moved.indices is given.indices, "which would be moved too"
    assert isinstance(moved, Batch)
    assert moved.x.device.type == "meta"
    assert moved.noise == batch(0).noise


def test_dropout_differs_between_the_parts_of_a_batch_and_repeats():
    class Dropped(GenerativeModel):
        def loss(self, x, label=None, generator=None):
            return {"loss": nn.functional.dropout(torch.ones(1000), 0.5).dot(torch.arange(1000.0))}

    module = GenerativeModule(Dropped())
    module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    first, second, again = (float(module.training_step(batch(n), 0)) for n in (0, 2, 0))
    assert first == again != second


class Folded(nn.Module):
    """Stands for a network: counts how often it runs as Python."""

    def __init__(self):
        super().__init__()
        self.layer, self.runs = nn.Linear(4, 4), 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.runs += 1
        return self.layer(x).sin().cos()


def test_compiled_networks_keep_their_names_and_values():
    model = nn.Sequential(Folded(), nn.Linear(4, 2))
    names = list(model.state_dict())
    x = torch.randn(3, 4)
    expected = model(x)
    compile_networks(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected)
    assert model[0].runs == 1, "only before it was compiled"


def test_on_a_cpu_only_training_steps_are_compiled():
    """A stance is of the whole process: it is given back."""
    compiled, module = Compile(), GenerativeModule(Numbered())
    seen = []

    def stance():
        seen.append(torch._dynamo.eval_frame._stance.stance)

    compiled.on_validation_start(None, module)
    stance()
    compiled.on_train_batch_start(None, module)
    stance()
    compiled.on_test_start(None, module)
    stance()
    compiled.on_exception(None, module, KeyError())
    stance()
    assert seen == ["force_eager", "default", "force_eager", "default"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in options("model") if name != "beta_vae"])
def test_a_compiled_run_resumes_exactly_and_is_read_without_a_compiler(cli, tmp_path, model):
    small = [*(MODELS.get(model) or [f"model={model}"]), *SHORT, "trainer.val_check_interval=5"]
    small += ["trainer.compile=true", "trainer.accelerator=cpu", "callback.generation=null"]
    whole, parts, plain = (tmp_path / name for name in ("whole", "parts", "plain"))
    assert cli("train", *small, f"hydra.run.dir={whole}").code == 0
    assert cli("train", *small, f"hydra.run.dir={parts}", "trainer.max_steps=6").code == 0
    resumed = [*small, f"hydra.run.dir={parts}", "resume=auto"]
    shutil.copytree(parts, plain)
    assert cli("train", *resumed).code == 0
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, parts)
    ]
    assert not [name for name in states[0] if "_orig_mod" in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert read_history(whole)["train/loss"] == read_history(parts)["train/loss"]
    without = ["trainer.compile=false", f"hydra.run.dir={plain}", "resume=auto"]
    assert cli("train", *small[:-2], *without, "callback.generation=null").code == 0
    assert cli("evaluate", f"ckpt_path={whole}", "metric=none").code == 0
