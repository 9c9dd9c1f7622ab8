"""Multiruns: every job is a process of its own, whatever happens to any of them."""

import csv
import os
import signal
import socket
import subprocess
import sys

import pytest
import standin
from support import PATIENCE, slow, wait_until

from src.errors import ConfigError
from src.launch import job as jobs
from src.launch.job import Job, recorded
from src.launch.local import Local
from src.launch.ray import Ray
from src.launch.slurm import Slurm
from src.launch.slurm_commands import State
from src.launch.slurm_submission import Submission

STANDIN = (sys.executable, standin.__file__)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "COMMAND", STANDIN)
    return tmp_path / "sweep"


@pytest.fixture
def drive(tmp_path):
    """Start a driver of stand-in jobs; what is left of it is killed."""
    started = []

    def start(*words, seconds):
        with open(tmp_path / "driver.log", "a") as log:
            driver = subprocess.Popen(
                [
                    *STANDIN,
                    "drive",
                    "-m",
                    "model=vae",
                    f"hydra.sweep.dir={tmp_path / 'sweep'}",
                    "grace_seconds=600",
                    *words,
                ],
                env=os.environ | {"STANDIN_SECONDS": str(seconds)},
                stdout=log,
                stderr=log,
            )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
        driver.wait()


def starts(sweep_dir):
    """Number of the job -> how often it was started."""
    found = sweep_dir.glob("*/starts")
    return {
        int(path.parent.name.split("-")[0]): len(path.read_text().splitlines()) for path in found
    }


def statuses(sweep_dir):
    return [job["status"] for job in recorded(sweep_dir)]


@pytest.mark.slow
def test_twenty_jobs_of_which_three_fail(cli, sweep):
    words = ["-m", "model=vae", "seed=range(0,20)", f"hydra.sweep.dir={sweep}", "launcher.jobs=4"]
    done = cli("train", *words)
    assert done.code == 8, "the first that failed was killed"
    said = (
        "error: job 0 failed: killed by SIGKILL: this is the job of seed 0 "
        f"(3 of 20 jobs not done); see {sweep}"
    )
    assert done.err == f"{said}/jobs.csv\n"
    rows = list(csv.DictReader((sweep / "jobs.csv").read_text().splitlines()))
    assert [int(row["job"]) for row in rows] == list(range(20))
    for seed, row in enumerate(rows):
        assert row["overrides"] == f"model=vae seed={seed}"
        assert (row["status"], row["metric"]) == (
            ("done", str(seed / 2)) if seed % 7 else ("failed", "")
        )
        assert row["run_dir"] == str(sweep / f"{seed}-vae-digits")
        assert f"job of seed {seed}\n" in (sweep / "jobs" / f"{seed}.log").read_text()
    assert rows[14]["detail"] == "exit code 1: seed=14: is divisible by 7"
    table = [
        line.split()
        for line in done.out.splitlines()
        if line[:1].isdigit() and "vae-digits" in line
    ]
    assert table[14][:4] == ["14", "seed=14", "failed", "14-vae-digits"]
    assert table[15] == ["15", "seed=15", "done", "7.5", "15-vae-digits"]
    assert cli("train", *words).code == 8
    assert starts(sweep) == {seed: 1 if seed % 7 else 2 for seed in range(20)}, (
        "only those that failed run again"
    )


def test_a_killed_driver_is_started_again(drive, tmp_path):
    sweep = tmp_path / "sweep"
    first = drive("seed=1,2,3,4,5", "launcher.jobs=2", seconds="600,0,600,600,600")
    wait_until(lambda: "done" in statuses(sweep) and len(starts(sweep)) >= 3)
    first.kill()
    first.wait()
    done = [job["number"] for job in recorded(sweep) if job["status"] == "done"]
    assert done == [0]
    before = starts(sweep)
    assert drive("seed=1,2,3,4,5", "launcher.jobs=2", seconds=0).wait(PATIENCE) == 0, (
        tmp_path / "driver.log"
    ).read_text()
    assert statuses(sweep) == ["done"] * 5
    for number, times in starts(sweep).items():
        assert times == 1 if number in done else times <= before.get(number, 0) + 1
    assert all(
        (sweep / f"{n}-vae-digits" / "checkpoint").exists() for n in before if n not in done
    ), "were asked to stop"


@pytest.mark.slow
def test_two_drivers_share_the_jobs(drive, tmp_path):
    two = [drive("seed=1,2,3,4", seconds=0.7) for _ in range(2)]
    assert [driver.wait(PATIENCE) for driver in two] == [0, 0]
    assert starts(tmp_path / "sweep") == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), *slow([(signal.SIGINT, 130)])])
def test_a_stopped_driver_stops_its_jobs(drive, tmp_path, signum, code):
    sweep = tmp_path / "sweep"
    driver = drive("seed=1,2,3", "launcher.jobs=2", seconds=600)
    wait_until(lambda: len(starts(sweep)) == 2)
    wait_until(lambda: statuses(sweep) == ["running", "running", "waiting"])
    driver.send_signal(signum)
    assert driver.wait(PATIENCE) == code
    assert statuses(sweep) == ["stopped", "stopped", "waiting"]
    assert len(list(sweep.glob("*/checkpoint"))) == 2
    said = (tmp_path / "driver.log").read_text()
    assert f"the same command with hydra.sweep.dir={sweep} goes on" in said
    assert said.splitlines()[-1] == f"error: stopped by {signal.Signals(signum).name}"


REFUSED = [
    (["seed=range(3,3)"], "--multirun: the sweep is empty"),
    (["seed=1", "model=nope,vae"], "model=nope: no such option"),
    (["seed=1", "launcher=local", "launcher.jobs=0"], "launcher.jobs=0: must be an integer >= 1"),
    (
        ["seed=1", "launcher.jbs=2"],
        "launcher.jbs=2: there is no setting 'launcher.jbs'; did you mean launcher.jobs?",
    ),
    (["seed=1", "hydra.sweeper.max_batch_size=2"], "hydra.sweeper.max_batch_size=2: must be null"),
    (
        ["seed=1", "launcher=nowhere"],
        "launcher=nowhere: no such option; there are local, ray, slurm",
    ),
    (["seed=1", "trainer.num_nodes=2"], "trainer.num_nodes=2: must be 1 with launcher=local"),
    (["seed=1", "trainer.devices=[0,1]"], "trainer.devices=[0, 1]: must be a number or auto"),
    (
        ["seed=1", "launcher=slurm"],
        "launcher=slurm: there is no sbatch here; start this on a login node",
    ),
    (
        ["seed=1", "launcher=slurm", "launcher.lead=3600"],
        "launcher.lead=3600: must be less than launcher.minutes=60",
    ),
    (
        ["seed=1", "launcher=ray"],
        "launcher=ray: the package ray is not installed; install it with: make install EXTRAS=",
    ),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_work_is_refused(cli, sweep, monkeypatch, words, message):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "ray", None)
    done = cli("train", "-m", *words, f"hydra.sweep.dir={sweep}")
    assert done.code == 2, done.err
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(sweep.glob("*/starts"))


def test_a_directory_of_another_sweep_is_refused(cli, sweep):
    assert cli("train", "-m", "model=vae", "seed=1,2", f"hydra.sweep.dir={sweep}").code == 0
    done = cli("train", "-m", "model=vae", "seed=1,3", f"hydra.sweep.dir={sweep}")
    assert done.code == 2
    assert (
        f"hydra.sweep.dir={sweep}: job 1 was another one (seed=2 seed=3); choose another"
        in done.err
    )


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_PROCID"])
def test_one_driver_is_enough(cli, sweep, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    done = cli("train", "-m", "model=vae", "seed=1,2", f"hydra.sweep.dir={sweep}")
    assert done.code == 2
    assert "would run once per rank" in done.err


@pytest.mark.parametrize("entry", ["sample", "evaluate"])
def test_only_training_has_jobs(cli, entry):
    done = cli(entry, "--multirun", "ckpt_path=x", "seed=1,2")
    assert (done.code, done.err.splitlines()) == (
        2,
        ["error: --multirun: only src.train takes it; give one run after the other"],
    )


SLOTS = [  # GPUs of the machine, launcher.jobs, trainer.devices -> GPUs of each slot
    ("0,1,2,3", None, 1, ["0", "1", "2", "3"]),
    ("0,1,2,3", None, 2, ["0,1", "2,3"]),
    ("4,5", 4, 1, ["4", "5", "4", "5"]),
    ("0,1,2,3", 2, "auto", ["0,1", "2,3"]),
    ("", 2, 1, [None, None]),
]


@pytest.mark.parametrize(("gpus", "at_once", "devices", "expected"), SLOTS)
def test_jobs_have_devices_of_their_own(monkeypatch, tmp_path, gpus, at_once, devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    slots = Local(jobs=at_once)._slots([Job(0, [], tmp_path / "x", "val/loss", devices)])
    assert [slot.get("CUDA_VISIBLE_DEVICES") or None for slot in slots] == expected
    assert not any("SLURM_NTASKS" in slot for slot in slots), (
        "a job takes no ranks from where the driver runs"
    )


def test_jobs_run_in_their_slots(cli, sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("STANDIN_SECONDS", "0.5")
    assert cli("train", "-m", "model=vae", "seed=1,2", f"hydra.sweep.dir={sweep}").code == 0
    assert sorted(path.read_text() for path in sweep.glob("*/starts")) == ["3\n", "5\n"]


def test_a_ray_address_without_ray_is_refused(monkeypatch):
    """Something listens there and never says a word; Ray alone would try for minutes."""
    pytest.importorskip("ray")
    monkeypatch.setattr("src.launch.ray.PATIENCE", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            ConfigError,
            match=rf"launcher.address={address}: no Ray there \(.*within 1 s\); give host:port",
        ):
            Ray(address=address).open()


SQUEUE = """#!/bin/bash
echo $PPID >> $0.calls; [ -e $0.broken ] && rm $0.broken && echo "Socket timed out" >&2 && exit 1
cat $0.states 2>/dev/null || true
"""
SBATCH = """#!/bin/bash
[ -e $0.broken ] && rm $0.broken && echo "Socket timed out" >&2 && exit 1
echo x >> $0.calls
number=$(wc -l < $0.calls)
[ -e $0.state ] && state=$(cat $0.state) || state=RUNNING
for k in $(seq 0 9); do echo "${number}_$k $state None" >> $(dirname $0)/squeue.states; done
echo $number
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of a Slurm that fails as one wishes, and three jobs.

    The real one of test_cluster.py does not fail so.
    """
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in {
        "squeue": SQUEUE,
        "sbatch": SBATCH,
        "scancel": '#!/bin/bash\necho "$@" >> $0.calls\n',
    }.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def some_jobs(tmp_path, number=3):
    return [
        Job(n, [f"seed={n}"], tmp_path / "sweep" / f"{n}-vae-digits", "val/loss")
        for n in range(number)
    ]


def calls(place, name):
    path = place / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


def let_end(place, job, state="COMPLETED", code=0):
    states = place / "squeue.states"
    states.write_text(states.read_text().replace(f"{job.handle} RUNNING", f"{job.handle} {state}"))
    if code is not None:
        job.file("exit").write_text(str(code))


def test_a_busy_slurm_is_asked_again(slurm, tmp_path):
    """A refused sbatch stops nothing that runs; before squeue has answered nothing is submitted."""
    first, second, _ = some_jobs(tmp_path)
    (slurm / "squeue.broken").touch()

    def feed():
        yield first
        while not first.handle:
            yield None
        (slurm / "sbatch.broken").touch()
        yield second
        while not second.handle:
            yield None
        let_end(slurm, first)
        let_end(slurm, second)

    assert sorted(job.number for job, code, _ in Slurm(poll=0.05).run(feed()) if code == 0) == [
        0,
        1,
    ]
    assert not (slurm / "squeue.broken").exists()
    assert not (slurm / "sbatch.broken").exists()
    assert len(calls(slurm, "sbatch")) == 2
    assert not calls(slurm, "scancel")


def test_a_first_refusal_of_slurm_ends_the_driver(slurm, tmp_path):
    (slurm / "sbatch.broken").touch()
    with pytest.raises(ConfigError, match="sbatch refuses: Socket timed out"):
        list(Slurm(poll=0.05).run(iter(some_jobs(tmp_path))))


def test_what_slurm_loses_is_submitted_again_while_it_gets_on(slurm, tmp_path):
    (slurm / "sbatch.state").write_text("PREEMPTED")
    (job,) = some_jobs(tmp_path, 1)
    assert [(code, why) for _, code, why in Slurm(poll=0.05).run(iter([job]))] == [
        (1, "Slurm says PREEMPTED, for the third time without a checkpoint")
    ]
    assert len(calls(slurm, "sbatch")) == 3


def test_two_drivers_submit_a_job_once_and_leaving_cancels_the_newest(slurm, tmp_path):
    ours, theirs = (list(map(Submission, some_jobs(tmp_path))) for _ in range(2))
    one, two = Slurm(poll=0.05), Slurm(poll=0.05)
    running, followed = {}, {}
    assert one._submit(ours, running) == two._submit(theirs, followed) == []
    assert len(calls(slurm, "sbatch")) == 1
    assert (
        [job.handle for job in theirs]
        == ["1_0", "1_1", "1_2"]
        == [job.handle for job in followed.values()]
    )
    (slurm / "squeue.states").unlink()
    one._cancel(list(running.values()))
    assert calls(slurm, "scancel") == ["1_0 1_1 1_2"]
    assert statuses(tmp_path / "sweep") == ["stopped"] * 3


def test_a_refusal_ends_no_job_of_an_earlier_start(slurm, tmp_path):
    first, second = some_jobs(tmp_path, 2)
    assert Slurm(poll=0.05)._submit([Submission(first)], {}) == []
    (slurm / "sbatch.broken").touch()
    again = Slurm(poll=0.05)

    def feed():
        yield from (first, second)
        while not second.handle:
            yield None
        let_end(slurm, first)
        let_end(slurm, second)

    assert [code for _, code, _ in again.run(feed())] == [0, 0]
    assert not calls(slurm, "scancel")


def test_what_slurm_never_takes_is_given_up(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr("src.launch.slurm.GIVE_UP", 3)
    slow = Slurm(poll=0.05)
    slow.cluster.accepted = True
    (slurm / "sbatch").write_text("#!/bin/bash\necho too large >&2; exit 1\n")
    ended = [(job.number, code, why) for job, code, why in slow.run(iter(some_jobs(tmp_path, 2)))]
    assert sorted(ended) == [(k, 2, "launcher=slurm: sbatch refuses: too large") for k in (0, 1)]


def test_what_cannot_be_cancelled_is_not_called_stopped(slurm, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("src.launch.slurm.KILL_WAIT", 0.5)
    (job,) = some_jobs(tmp_path, 1)
    stubborn, running = Slurm(poll=0.05, grace=0.5), {}
    stubborn._submit([Submission(job)], running)
    (slurm / "scancel").write_text("#!/bin/bash\nexit 1\n")
    stubborn._cancel(list(running.values()))
    assert "Slurm has not ended 1_0: scancel them" in caplog.text
    assert statuses(tmp_path / "sweep") == ["waiting"]


GONE = (143, "cancelled at the cluster")
VERDICTS = [  # state of squeue, status before -> verdict after each of three looks
    ("RUNNING", "waiting", [None, None, None]),
    ("CANCELLED", "running", [GONE, GONE, GONE]),
    ("FAILED", "running", [(1, "Slurm says FAILED")] * 3),
    ("COMPLETED", "running", [None, None, (1, "Slurm says COMPLETED, without an exit code")]),
    ("", "waiting", [None, None, GONE]),
    ("", "running", [None, None, (143, "Slurm no longer knows it")]),
    (
        "NODE_FAIL",
        "running",
        [None, None, (1, "Slurm says NODE_FAIL, for the third time without a checkpoint")],
    ),
]


@pytest.mark.parametrize(("state", "status", "verdicts"), VERDICTS)
def test_how_a_job_of_slurm_has_ended(tmp_path, state, status, verdicts):
    (job,) = some_jobs(tmp_path, 1)
    job.status = status
    submission = Submission(job)
    assert [submission.verdict(State(state, "None")) for _ in verdicts] == verdicts


@pytest.mark.parametrize("state", ["RUNNING", "FAILED", "CANCELLED", "COMPLETED", "", "NODE_FAIL"])
def test_what_a_job_has_left_counts_before_its_state(tmp_path, state):
    (job,) = some_jobs(tmp_path, 1)
    job.begin()
    job.file("exit").write_text("7")
    verdict = Submission(job).verdict(State(state))
    assert verdict == (None if state in ("RUNNING", "NODE_FAIL") else (7, ""))
    job.run_dir.mkdir()
    (job.run_dir / "metrics.json").write_text('{"val/loss": 1}')
    verdict = Submission(job).verdict(State(state))
    assert verdict == (None if state == "RUNNING" else (0, ""))


def test_a_lost_job_counts_from_its_last_checkpoint(tmp_path):
    (job,) = some_jobs(tmp_path, 1)
    submission, latest = Submission(job), job.run_dir / "checkpoints" / "latest.json"
    latest.parent.mkdir(parents=True)
    for step in range(5):
        latest.write_text(str(step))
        assert submission.verdict(State("PREEMPTED")) is None
    assert submission.verdict(State("PREEMPTED")) is None
    assert submission.verdict(State("PREEMPTED")) is not None


@pytest.mark.slow
def test_two_drivers_of_slurm_share_the_jobs(drive, slurm, tmp_path):
    """The second composes its jobs while the first submits them."""
    words = ("launcher=slurm", "launcher.poll=0.2", "seed=range(1,10)")
    two = [drive(*words, seconds=0) for _ in range(2)]
    wait_until(
        lambda: (
            len(recorded(tmp_path / "sweep")) == 9
            and all(job["handle"] for job in recorded(tmp_path / "sweep"))
        )
    )
    before = len(calls(slurm, "squeue"))
    # who has not submitted by then does not do it
    wait_until(
        lambda: all(calls(slurm, "squeue")[before:].count(str(driver.pid)) > 3 for driver in two)
    )
    assert len(calls(slurm, "sbatch")) == 1
    assert {job["starts"] for job in recorded(tmp_path / "sweep")} == {1}
    for driver in two:
        driver.kill()


def test_equal_results_are_drawn(cli, sweep):
    """fANOVA knows no importance where nothing varies."""
    done = cli(
        "train",
        "-m",
        "sweep=study",
        "model=vae",
        "seed=1",
        "optimizer.lr=interval(0.1,1)",
        "sweep.trials=5",
        "launcher.jobs=3",
        f"hydra.sweep.dir={sweep}",
    )
    assert done.code == 0, done.err
    assert (sweep / "study.png").exists()


def test_words_of_an_earlier_start_are_not_the_last(tmp_path):
    (job,) = some_jobs(tmp_path, 1)
    job.file("log").parent.mkdir(parents=True)
    job.file("log").write_text("error: stopped by SIGTERM\n")
    job.mark_log()
    job.begin()
    job.settle(137)
    assert job.detail == "killed by SIGKILL: no word"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["launcher=slurm", "launcher.setup='module load cuda'"],
            "launcher.setup=module load cuda: must be a list",
        ),
        (["launcher=slurm", "launcher.poll=abc"], "launcher.poll=abc: must be a number"),
        (["launcher=slurm", "launcher.poll=-1"], "launcher.poll=-1: must be > 0"),
        (["launcher=slurm", "launcher.gpus=2"], "launcher.gpus=2: must be true or false"),
        (["launcher=ray", "launcher.cpus=null"], "launcher.cpus=null: must be a number"),
        (
            ["launcher=ray", "launcher.address=nonsense"],
            "launcher.address=nonsense: must be host:port, or null",
        ),
    ],
)
def test_settings_of_launchers_are_checked(cli, sweep, slurm, words, message):
    if "launcher=ray" in words:
        pytest.importorskip("ray")
    done = cli("train", "-m", *words, "seed=1", f"hydra.sweep.dir={sweep}")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err


def test_slurm_settings_are_checked():
    for settings in ({"minutes": 0}, {"cpus": 0}, {"jobs": 0}, {"lead": 0}):
        with pytest.raises(ConfigError, match=f"launcher.{next(iter(settings))}=0"):
            Slurm(**settings)
