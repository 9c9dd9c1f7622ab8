"""OpenMP's threads: their number and how they wait are chosen where nobody has said otherwise."""

import math
import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest
import yaml
from conftest import ROOT

from src.config import threads
from src.config.threads import BRIEFLY, CORES, NUMBER, WAITING, choose_threads, cpu_quota
from src.launch.job import Job
from src.launch.local import Local
from src.launch.ray import Ray

CORES_HERE = 8  # of the machine that the tests imagine
NAMES = (*NUMBER, *WAITING, CORES, *threads.FROM_OUTSIDE)


@pytest.fixture
def new_process(monkeypatch):
    """As if this process had just begun, with nothing set, on eight cores without a quota."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set by the test is undone
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "_chosen", {})
    monkeypatch.setattr(threads, "cpu_quota", lambda: math.inf)
    monkeypatch.setattr(os, "cpu_count", lambda: CORES_HERE)
    bound = set(range(CORES_HERE))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: bound, raising=False)


def settings():
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def without_settings():
    return {name: value for name, value in os.environ.items() if name not in NAMES}


def test_where_nothing_is_set_threads_do_not_spin_and_openmp_counts_the_cores(new_process):
    choose_threads()
    assert settings() == BRIEFLY
    said = "8 of 8 cores; those that wait soon sleep (GOMP_SPINCOUNT=1000, KMP_BLOCKTIME=0)"
    assert threads.threads_in_words(8) == said


@pytest.mark.parametrize("name", WAITING)
def test_how_they_wait_is_the_users(new_process, monkeypatch, name):
    monkeypatch.setenv(name, "7")
    choose_threads()
    assert settings() == {name: "7"}
    assert threads.threads_in_words(8) == f"8 of 8 cores; from the environment: {name}=7"


@pytest.mark.parametrize("name", NUMBER)
def test_the_number_is_the_users(new_process, monkeypatch, name):
    monkeypatch.setenv(name, "6")
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.0)
    choose_threads(ranks=2)
    assert settings() == BRIEFLY | {name: "6"}
    said = threads.threads_in_words(6)
    assert said.startswith("6 of 2 usable cores, of 8; those that wait soon sleep")
    assert said.endswith(f"from the environment: {name}=6")


@pytest.mark.parametrize(
    ("quota", "left", "ranks", "number"),
    [
        (3.0, None, 1, "3"),
        (2.5, None, 1, "3"),
        (0.1, None, 1, "1"),
        (8.0, None, 1, None),
        (math.inf, "2", 1, "2"),
        (math.inf, "2", 3, "1"),
        (3.0, "2", 1, "2"),
        (math.inf, "many", 1, None),
        (math.inf, None, 2, "4"),
        (math.inf, None, 0, None),  # refused later
    ],
)
def test_a_thread_for_each_core_that_is_left(new_process, monkeypatch, quota, left, ranks, number):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    if left is not None:
        monkeypatch.setenv(CORES, left)
    choose_threads(ranks)
    assert os.environ.get("OMP_NUM_THREADS") == number


@pytest.mark.parametrize("name", threads.FROM_OUTSIDE)
def test_ranks_that_are_started_from_outside_have_their_share(new_process, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    choose_threads(ranks=2)
    assert settings() == BRIEFLY | {name: "2"}


def test_a_further_rank_takes_what_the_first_has_chosen(new_process, monkeypatch):
    choose_threads(ranks=4)
    first = settings()
    monkeypatch.setattr(threads, "_chosen", {})  # Lightning starts it with this environment
    choose_threads(ranks=4)
    assert settings() == first == BRIEFLY | {"OMP_NUM_THREADS": "2"}


def test_nothing_is_set_that_torch_would_not_read_any_more(new_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    choose_threads(ranks=2)
    assert settings() == {}


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "200000 100000"}, 0.5),
        ("0::/elsewhere", {"cpu.max": "300000 100000"}, 3),
        (
            "4:cpu,cpuacct:/docker/x\n3:cpuset:/",
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:cpuset:/", {"cpu/cpu.max": "100000 100000"}, math.inf),
        ("0::/", {"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_the_quota_is_that_of_the_tightest_group_around(tmp_path, own, files, quota):
    (tmp_path / "own").write_text(own + "\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "own") == quota


def test_where_there_are_no_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "nothing") == math.inf


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_run_says_what_it_has_chosen(tmp_path, small, cache_dir):
    one = {min(os.sched_getaffinity(0))}
    words = ["model=vae", "network=mlp_autoencoder", "callback.generation=null"]
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *small, *words, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=without_settings(),
        preexec_fn=lambda: os.sched_setaffinity(0, one),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    of = "1 cores" if os.cpu_count() == 1 else f"1 usable cores, of {os.cpu_count()}"
    said = f"1 of {of}; those that wait soon sleep (GOMP_SPINCOUNT=1000, KMP_BLOCKTIME=0)"
    assert done.stdout.count(f"threads: {said}\n") == 1
    assert f"threads: {said}" in (tmp_path / "run" / "train.log").read_text()
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["provenance"]["threads"] == said


ASK = """
from src.config.threads import choose_threads
choose_threads()
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_job_of_this_machine_gets_its_share(monkeypatch, tmp_path, at_once):
    for name in (*NUMBER, CORES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    slots = Local(jobs=at_once)._slots([Job(0, [], tmp_path / "x", "val/loss")])
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=slots[-1], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == max(1, threads.usable_cores() // at_once)


@pytest.mark.parametrize(("asked", "number"), [(None, "3"), ("2", "2")])
def test_each_rank_of_a_job_of_ray_gets_its_own_cores(monkeypatch, tmp_path, asked, number):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setitem(sys.modules, "ray", MagicMock())
    ray = Ray(cpus=3)
    ray._start(Job(0, [], tmp_path / "x", "val/loss", devices=2))
    handed_over = ray.ray.remote.return_value.options.return_value.remote.call_args.args
    assert handed_over[-1] == {"OMP_NUM_THREADS": number}
