"""Multiruns on a real Slurm (which SLURM_CONF names) and a real Ray.

``make test-cluster`` starts both.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hold import holding
from runs import SHORT, assert_same, latest, words
from support import PATIENCE, wait_until

from src.launch.job import recorded

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm: run make test-cluster"),
]
CPU_RANKS = ("trainer=ddp", "trainer.accelerator=cpu")
SLURM = ("launcher=slurm", "launcher.poll=1")
# Ray calls out at start
IN_A_NETWORK_OF_ITS_OWN = ("unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "-")
RAY = f"{Path(sys.executable).parent}/ray"
TOKEN = f"{RAY} get-auth-token --generate > /dev/null"  # a new machine has none
START = f"{RAY} start --head --port=6399 --node-ip-address=127.0.0.1 --num-cpus=2"
# the end of its first process is its end
A_RAY_CLUSTER = ("unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child")
A_RAY_CLUSTER += (
    "bash",
    "-c",
    f"ip link set lo up; export RAY_AUTH_MODE=token; {TOKEN}; "
    f'{START} --include-dashboard=false || exit 1; "$@"; exit $?',
    "-",
)
STUDY = ("sweep=vae_tpe", "sweep.trials=3", "launcher.jobs=2", "network=mlp_autoencoder", *SHORT)
DRIVE = "import src.launch.ray, src.train; src.launch.ray.PATIENCE = 600; src.train.main()"


@pytest.fixture
def drive(tmp_path):
    """Start a driver; one that is left is stopped, and with it its jobs."""
    started = []

    def start(*words, before=()):
        with open(tmp_path / "driver.log", "a") as log:
            command = [
                *before,
                sys.executable,
                "-c",
                DRIVE,
                "-m",
                f"hydra.sweep.dir={tmp_path / 'sweep'}",
                *words,
            ]
            environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
            started.append(
                subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
            )
        return started[-1]

    yield start
    for driver in started:
        driver.terminate()
        driver.wait(PATIENCE)


def said(tmp_path):
    return (tmp_path / "driver.log").read_text() + "".join(
        p.read_text() for p in tmp_path.glob("sweep/jobs/*.log")
    )


def statuses(tmp_path):
    return [job["status"] for job in recorded(tmp_path / "sweep")]


def handles(tmp_path):
    return [job["handle"] for job in recorded(tmp_path / "sweep")]


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for_requeue(handle):
    wait_until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", handle))


def test_a_job_array_with_a_failure_and_cancelled_jobs(drive, tmp_path):
    """Two at a time: one fails, one is cancelled running, one waiting, the others are done."""
    command = [*words("vae", "plain"), *SLURM, "seed=-1,1,2,3", holding(tmp_path)]
    for seed in (1, 2):
        (tmp_path / f"hold-{seed}").write_text("3")
    driver = drive(*command, "launcher.jobs=2")
    wait_until(lambda: len(handles(tmp_path)) == 4 and all(handles(tmp_path)))
    array = handles(tmp_path)
    assert [handle.split("_")[1] for handle in array] == ["0", "1", "2", "3"]
    slurm("scancel", array[3])
    wait_until(lambda: latest(tmp_path / "sweep" / "1-vae-digits") >= 2)
    slurm("scancel", array[1])
    (tmp_path / "hold-2").unlink()
    assert driver.wait(PATIENCE) == 2, said(tmp_path)
    assert statuses(tmp_path) == ["failed", "stopped", "done", "stopped"], said(tmp_path)
    assert recorded(tmp_path / "sweep")[0]["detail"].startswith(
        "exit code 2: seed=-1: must be an integer"
    )
    kept = latest(tmp_path / "sweep" / "1-vae-digits")
    assert kept >= 2
    (tmp_path / "hold-1").unlink()
    assert drive(*command).wait(PATIENCE) == 2, said(tmp_path)
    assert statuses(tmp_path) == ["failed", "done", "done", "done"], said(tmp_path)
    assert handles(tmp_path)[2] == array[2], "a job that is done is not done again"


def test_a_job_goes_back_into_the_queue_while_its_driver_is_dead(drive, unbroken, tmp_path):
    """USR1, as Slurm sends before the time limit.

    The job keeps a checkpoint, is requeued and ends with equal bits.
    """
    run_dir = tmp_path / "sweep" / "0-vae-digits"
    command = [*words("vae", "plain"), *SLURM, holding(tmp_path)]
    (tmp_path / "hold-0").write_text("3")
    driver = drive(*command)
    wait_until(lambda: latest(run_dir) >= 2)
    (handle,) = handles(tmp_path)
    driver.kill()
    driver.wait()
    slurm("scancel", "--signal=USR1", handle)
    wait_for_requeue(handle)
    (tmp_path / "hold-0").unlink()
    assert drive(*command).wait(PATIENCE) == 0, said(tmp_path)
    assert handles(tmp_path) == [handle], "the driver has found its job again"
    assert "stopped by SIGUSR1" in said(tmp_path)
    assert_same(run_dir, unbroken("vae", "plain"))


def test_a_job_that_another_one_pushes_aside_comes_back(drive, unbroken, tmp_path):
    """Slurm itself stops and requeues it."""
    run_dir = tmp_path / "sweep" / "0-vae-digits"
    (tmp_path / "hold-0").write_text("3")
    command = [*words("vae", "plain"), *SLURM, "launcher.partition=spot", holding(tmp_path)]
    driver = drive(*command)
    wait_until(lambda: latest(run_dir) >= 2)
    slurm(
        "sbatch",
        "--partition=urgent",
        "--exclusive",
        f"--output={tmp_path}/urgent",
        "--wrap=sleep 1",
    )
    wait_for_requeue(*handles(tmp_path))
    (tmp_path / "hold-0").unlink()
    assert driver.wait(PATIENCE) == 0, said(tmp_path)
    assert "Restarts=1" in slurm("scontrol", "show", "job", *handles(tmp_path))
    assert_same(run_dir, unbroken("vae", "plain"))


def test_a_study(drive, tmp_path):
    assert drive(*STUDY, *SLURM).wait(PATIENCE) == 0, said(tmp_path)
    assert statuses(tmp_path) == ["done"] * 3
    assert len({handle.split("_")[0] for handle in handles(tmp_path)}) == 2, (
        "one array for the first two, one for the third, which begins as one of them ends"
    )
    assert "Study vae_tpe: 3 complete" in said(tmp_path)


def test_two_nodes_train_as_one_process_does(drive, unbroken, tmp_path):
    """Two tasks by srun, stopped and requeued in the middle."""
    run_dir = tmp_path / "sweep" / "0-ae-digits"
    two = (*CPU_RANKS, "trainer.devices=1", "trainer.num_nodes=2")
    (tmp_path / "hold-0").write_text("3")
    driver = drive(*words("ae", "plain"), *two, *SLURM, holding(tmp_path))
    wait_until(lambda: latest(run_dir) >= 2)
    (handle,) = handles(tmp_path)
    assert "n[1-2]" in slurm("squeue", "-h", "-r", "-o", "%i %N", "-j", handle)
    slurm("scancel", "--signal=USR1", handle)
    wait_for_requeue(handle)
    (tmp_path / "hold-0").unlink()
    assert driver.wait(PATIENCE) == 0, said(tmp_path)
    assert "Restarts=1" in slurm("scontrol", "show", "job", handle), said(tmp_path)
    mine, one = (
        json.loads((path / "metrics.json").read_text())
        for path in (run_dir, unbroken("ae", "plain"))
    )
    assert mine["step"] == one["step"] == 12
    for name in ("val/loss", "test/loss"):
        assert mine[name] == pytest.approx(one[name], rel=1e-4), name


def test_tasks_that_disagree_with_devices_are_refused(tmp_path):
    command = [
        "srun",
        "-N1",
        "--ntasks-per-node=2",
        sys.executable,
        "-m",
        "src.train",
        *words("vae", "plain"),
    ]
    command += [*CPU_RANKS, "trainer.devices=1", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "trainer.devices=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_stopped_driver_cancels_its_jobs(drive, tmp_path):
    (tmp_path / "hold-1").write_text("3")
    command = [*words("vae", "plain"), *SLURM, "launcher.jobs=1", "seed=1,2", holding(tmp_path)]
    driver = drive(*command)
    wait_until(lambda: latest(tmp_path / "sweep" / "0-vae-digits") >= 2)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(PATIENCE) == 143, said(tmp_path)
    assert statuses(tmp_path) == ["stopped", "stopped"], said(tmp_path)
    states = slurm("squeue", "-h", "-r", "-t", "all", "-o", "%i %T")
    assert all(f"{handle} CANCELLED" in states for handle in handles(tmp_path))


def test_a_rank_that_fails_ends_its_job(drive, tmp_path):
    """Slurm stops the other rank: no reason to requeue, since it would fail for ever."""
    two = (*CPU_RANKS, "trainer.devices=2", "trainer.num_nodes=1")
    driver = drive(
        *words("vae", "plain"),
        *two,
        *SLURM,
        "+callback.fault={_target_:faults.Fault,step:3,where:batch_start,rank:1}",
    )
    assert driver.wait(PATIENCE) == 8, said(tmp_path)
    assert statuses(tmp_path) == ["failed"]
    assert "Restarts=0" in slurm("scontrol", "show", "job", handles(tmp_path)[0])


def test_jobs_on_ray(drive, unbroken, tmp_path):
    """One fails; the other ends with equal bits.

    It is stopped with its driver, goes on with the next, and loses its worker.
    """
    command = [*words("vae", "plain"), "launcher=ray", "seed=0,-1", holding(tmp_path)]
    (tmp_path / "hold-0").write_text("3")
    driver = drive(*command, before=IN_A_NETWORK_OF_ITS_OWN)
    run_dir = tmp_path / "sweep" / "0-vae-digits"
    wait_until(lambda: latest(run_dir) >= 2)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(PATIENCE) == 143, said(tmp_path)
    log = tmp_path / "sweep" / "jobs" / "0.log"
    assert "stopped by SIGTERM" in log.read_text()
    kept = latest(run_dir)
    (tmp_path / "hold-0").write_text(str(kept + 3))
    driver = drive(*command, before=IN_A_NETWORK_OF_ITS_OWN)
    wait_until(lambda: latest(run_dir) > kept)
    job = json.loads((run_dir / ".lock").read_text())["pid"]
    os.kill(
        int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL
    )
    wait_until(lambda: log.read_text().count("stopped by SIGTERM") == 2)
    (tmp_path / "hold-0").unlink()
    assert driver.wait(PATIENCE) == 2, said(tmp_path)
    assert statuses(tmp_path) == ["done", "failed"], said(tmp_path)
    assert_same(run_dir, unbroken("vae", "plain"))


def test_a_study_on_a_ray_that_is_there(drive, tmp_path):
    """Its two CPUs are one job of two ranks at a time."""
    there = ("launcher=ray", "launcher.address=127.0.0.1:6399")
    driver = drive(*STUDY, *there, *CPU_RANKS, "trainer.devices=2", before=A_RAY_CLUSTER)
    assert driver.wait(PATIENCE) == 0, said(tmp_path)
    assert statuses(tmp_path) == ["done"] * 3
    assert "Study vae_tpe: 3 complete" in said(tmp_path)
