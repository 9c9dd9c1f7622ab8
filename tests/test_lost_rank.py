"""Two ranks (gloo, CPU): a signal to one stops both, a lost one ends the job; it can go on."""

import pytest
from runs import fault, latest

pytestmark = pytest.mark.slow
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
RUN = (
    *(
        "model=vae",
        "trusted_packages=[faults]",
        "network=mlp_autoencoder",
        "logger=csv",
        "callback.grid=null",
        "callback.generation=null",
    ),
    *("trainer.max_steps=12", "trainer.val_check_interval=5", "dataset.global_batch_size=64"),
    "grace_seconds=600",
)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_and_the_state_goes_on_with_one(zygote, tmp_path, rank):
    place = f"hydra.run.dir={tmp_path / 'run'}"
    done = zygote.run("train", *RUN, *TWO, place, fault(7, "batch_start", "term", rank))
    assert (done.code, latest(tmp_path / "run")) == (143, 8), done.err
    assert done.err.splitlines() == [
        "error: stopped by SIGTERM; resume=auto with the same hydra.run.dir goes on"
    ]
    resumed = zygote.run("train", *RUN, place, "resume=auto")
    assert (resumed.code, latest(tmp_path / "run")) == (0, 12), resumed.err


def test_a_killed_rank_ends_the_job(zygote, tmp_path):
    done = zygote.run(
        "train", *RUN, *TWO, f"hydra.run.dir={tmp_path / 'run'}", fault(7, "batch_start", "kill", 1)
    )
    assert (done.code, latest(tmp_path / "run")) == (8, 5), done.err
    assert done.err.count("error: another rank of this job is gone") == 1
    assert "Traceback" not in done.err
