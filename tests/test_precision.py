"""trainer.precision on machines with and without bfloat16: what auto takes, and what is said."""

import logging

import pytest

from src.config import machine
from src.config.machine import settle_precision, warn_if_slow
from src.errors import ConfigError
from src.parallel.sampling import check_sampling
from src.rundir.checkpoint import read_checkpoint
from src.train import train
from src.training.assembly import assemble, check

TINY = (
    *("trainer=debug", "trainer.accelerator=cpu", "trainer.max_steps=1", "logger=csv"),
    *("callback.preflight=null", "callback.generation=null", "callback.grid=null"),
    *("dataset.global_batch_size=16", "model=vae", "network=mlp_autoencoder"),
)
HERE = {True: "bf16-mixed", False: "32-true"}


@pytest.fixture
def has_bf16(monkeypatch):
    """Decide whether the CPU has instructions for bfloat16."""

    def decide(answer):
        monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: answer)

    return decide


@pytest.fixture
def run(composed, has_bf16, tmp_path):
    """A run of one step in bfloat16, on a CPU that has it."""
    has_bf16(True)
    train(composed(*TINY, "trainer.precision=auto", f"run_dir={tmp_path / 'made'}"))
    return tmp_path / "made"


def test_the_question_has_an_answer_on_this_machine():
    assert machine._cpu_has_bf16() in (True, False)


@pytest.mark.parametrize("answer", [True, False])
def test_auto_is_what_is_fast_and_is_what_is_recorded(composed, has_bf16, answer):
    has_bf16(answer)
    assembly = assemble(composed(*TINY, "trainer.precision=auto"))
    assert assembly.config["trainer"]["precision"] == HERE[answer]
    assert assembly.trainer.precision == HERE[answer]


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_gpu_the_gpu_is_asked(composed, has_bf16, monkeypatch, answer):
    has_bf16(not answer)
    monkeypatch.setattr(machine.CUDAAccelerator, "auto_device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: answer)
    node = composed("trainer.precision=auto").trainer
    settle_precision(node)
    assert node.precision == HERE[answer]


@pytest.mark.parametrize("answer", [True, False])
def test_what_the_user_names_stays(composed, has_bf16, answer):
    has_bf16(answer)
    for precision in HERE.values():
        cfg = composed(*TINY, f"trainer.precision={precision}")
        check(cfg)
        assert cfg.trainer.precision == precision


def test_the_recipe_takes_what_is_fast(composed):
    assert composed("experiment=mnist_vae_200").trainer.precision == "auto"


@pytest.mark.parametrize("goes_on", ["resume=auto run_dir={}", "ckpt_path={}"])
def test_a_run_goes_on_in_the_precision_that_it_was_recorded_with(composed, has_bf16, run, goes_on):
    assert read_checkpoint(run)["config"]["trainer"]["precision"] == "bf16-mixed"
    has_bf16(False)
    words = goes_on.format(run).split()
    cfg = composed(*TINY, "trainer.precision=auto", *words)
    assert check(cfg).step == 1
    assert cfg.trainer.precision == "bf16-mixed"
    cfg = composed(*TINY, "trainer.precision=32-true", *words)
    check(cfg)
    assert cfg.trainer.precision == "32-true", "what is typed counts more"


def test_a_new_run_from_weights_chooses_anew(composed, has_bf16, run):
    has_bf16(False)
    cfg = composed(*TINY, "trainer.precision=auto", f"init_from={run}")
    check(cfg)
    assert cfg.trainer.precision == "32-true"


def test_a_recorded_precision_that_this_machine_does_not_have_is_refused(composed):
    node = composed(*TINY, "trainer.precision=auto").trainer
    with pytest.raises(ConfigError, match="trainer.precision=16-mixed: needs a GPU"):
        settle_precision(node, recorded="16-mixed")


def test_a_recorded_precision_that_nobody_knows_does_not_count(composed, has_bf16):
    has_bf16(False)
    node = composed(*TINY, "trainer.precision=auto").trainer
    settle_precision(node, recorded="auto")
    assert node.precision == "32-true"


@pytest.mark.parametrize("answer", [True, False])
def test_16_mixed_on_a_cpu_advises_what_fits_the_machine(composed, has_bf16, answer):
    has_bf16(answer)
    with pytest.raises(ConfigError) as refused:
        check(composed(*TINY, "trainer.precision=16-mixed"))
    advised = str(refused.value).partition("use trainer.precision=")[2].partition(",")[0]
    cfg = composed(*TINY, f"trainer.precision={advised}")
    check(cfg)
    assert cfg.trainer.precision == HERE[answer]


@pytest.mark.parametrize("answer", [True, False])
def test_samples_are_drawn_in_what_is_fast(composed, has_bf16, answer):
    has_bf16(answer)
    cfg = composed("trainer=cpu", "trainer.precision=auto", "ckpt_path=x", name="sample")
    check_sampling(cfg)
    assert cfg.trainer.precision == HERE[answer]


def test_imitated_bf16_is_said_once_in_the_log_and_nothing_else_is(
    composed, has_bf16, tmp_path, caplog
):
    said = "trainer.precision=bf16-mixed: this CPU has no instructions for bfloat16"
    for answer, precision in [(False, "bf16-mixed"), (True, "bf16-mixed"), (False, "32-true")]:
        has_bf16(answer)
        place = tmp_path / f"{answer}-{precision}"
        with caplog.at_level(logging.WARNING):
            train(composed(*TINY, f"trainer.precision={precision}", f"run_dir={place}"))
        expected = int(not answer and precision == "bf16-mixed")
        assert (place / "train.log").read_text().count(said) == expected
    assert [said in message for message in caplog.messages].count(True) == 1


def test_further_ranks_do_not_repeat_it(composed, has_bf16, monkeypatch, caplog):
    has_bf16(False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    warn_if_slow(composed("trainer=cpu", "trainer.precision=bf16-mixed").trainer)
    assert caplog.messages == []
