"""What is not the run's own stays: files of users and of other processes, and earlier cards."""

import atexit
import json
import multiprocessing.util
import os
import threading

import pytest
from torch.utils.data import Dataset

from src.config.explain import explain
from src.errors import StorageError, WorkerLostError
from src.metric.base import Measurement
from src.parallel.sampling import Shards
from src.report.card import Card
from src.rundir.directory import keep_earlier
from src.rundir.history import histories, read_history
from src.rundir.store import CheckpointStore
from src.training.interruption import leave_signals_to_parent
from src.training.loader import Loader

THEIRS = [
    "best-mine.ckpt",
    "best-1.ckpt",
    "best-00000001-copy.ckpt",
    "step-old.ckpt",
    "step-7.ckpt",
    "step-0000000٣.ckpt",
    ".notes.tmp",
    ".best-mine.ckpt.abcdefgh.tmp",
    ".step-00000004.ckpt.tmp",
    ".other.json.abcdefgh.tmp",
]


def test_only_checkpoints_of_the_run_go(tmp_path, monkeypatch):
    monkeypatch.setattr("src.rundir.store.damage", lambda path: "")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own = [f"{kind}-{step:08d}.ckpt" for kind in ("step", "best") for step in (1, 2, 3, 4)]
    dead = [".step-00000004.ckpt.abcdef_1.tmp", ".latest.json.abcdefgh.tmp"]
    for name in [*THEIRS, *own, *dead]:
        (folder / name).write_text(name)
    evaluation = tmp_path / ".evaluation.json.abcdefgh.tmp"
    evaluation.write_text("being written")
    store = CheckpointStore(folder, keep=1)
    assert sorted(store.steps("best")) == [1, 2, 3, 4]
    assert [path.name for path in store.candidates()] == []  # nothing is published yet
    store.clean()
    store.publish(store.path(4), best=store.path(4, "best"))
    left = {path.name for path in folder.iterdir()}
    assert left == {*THEIRS, "step-00000004.ckpt", "best-00000004.ckpt", "latest.json", "last.ckpt"}
    assert evaluation.exists()
    assert store.candidates() == [store.path(4)]


def test_history_is_what_the_run_has_written(tmp_path):
    for name, value in {"metrics-1.csv": 1, "metrics-10.csv": 3, "metrics-9.csv": 2}.items():
        (tmp_path / name).write_text(f"step,loss\n{value},{value}\n")
    (tmp_path / "metrics.csv").write_text("step,loss\n4,4\n")
    for name in ("metrics-old.csv", "metrics-1b.csv", "metrics-.csv", "metrics-1-2.csv"):
        (tmp_path / name).write_text("no,history\n")
    names = [path.name for path in histories(tmp_path)]
    assert names == ["metrics-1.csv", "metrics-9.csv", "metrics-10.csv", "metrics.csv"]
    assert read_history(tmp_path) == {"loss": ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])}
    keep_earlier(tmp_path / "metrics.csv")
    assert (tmp_path / "metrics-11.csv").exists()
    assert (tmp_path / "metrics-old.csv").read_text() == "no,history\n"


def test_files_of_one_card_get_one_number(tmp_path):
    for name in ("a.json", "a.md", "a-1.json", "a-3.md", "a-x.md"):
        (tmp_path / name).write_text(name)
    keep_earlier(tmp_path / "a.json", tmp_path / "a.md", tmp_path / "a-bound.png")
    assert (tmp_path / "a-4.json").read_text() == "a.json"
    assert (tmp_path / "a-4.md").read_text() == "a.md"
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("start", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_evaluations_that_end_at_once_keep_their_cards(tmp_path, start):
    def write(value):
        card = Card(f"Evaluation {value}", {})
        card.add("test", {"kid": Measurement(float(value))})
        card.write(tmp_path / "out")

    writers = [start(target=write, args=(value,)) for value in range(5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    seen = set()
    for end in ("", "-1", "-2", "-3", "-4"):
        value = json.loads((tmp_path / "out" / f"evaluation{end}.json").read_text())["test/kid"]
        text = (tmp_path / "out" / f"evaluation{end}.md").read_text()
        assert text.startswith(f"# Evaluation {value:.0f}\n")
        seen.add(value)
    assert seen == {0, 1, 2, 3, 4}


def test_samples_are_kept_though_another_evaluation_removes_them(tmp_path, monkeypatch):
    shards = Shards(tmp_path / ".shards-1")
    calls = []

    def write(block, images):
        calls.append(block)
        if len(calls) == 1:
            raise StorageError("gone") from FileNotFoundError()

    monkeypatch.setattr(shards, "_write", write)
    shards.save(range(2), None)
    assert len(calls) == 2
    (tmp_path / ".shards-1").mkdir()
    shards.remove()
    assert list(tmp_path.iterdir()) == []
    shards.remove()


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
)
def test_workers_that_cannot_be_started(monkeypatch, failing, error):
    process = multiprocessing.process.BaseProcess
    start, calls = process.start, []

    def limited(self):
        calls.append(self)
        if len(calls) == failing:
            raise error
        start(self)

    monkeypatch.setattr(process, "start", limited)
    loader = Loader(Numbers(), num_workers=3, worker_init_fn=leave_signals_to_parent)
    with pytest.raises(WorkerLostError, match=r"num_workers=3: its data workers .*ulimit -n"):
        iter(loader)
    assert not [worker for worker in calls if worker.pid and worker.is_alive()]
    assert explain(RuntimeError("Too many open files. Communication"), None, "", [])[0] == 8


def test_a_process_ends_though_its_workers_are_deaf(tmp_path):
    def leave():
        held.append(iter(Loader(Numbers(), num_workers=2, worker_init_fn=leave_signals_to_parent)))
        next(held[0])
        raise SystemExit(3)

    held = []
    pid = os.fork()
    if not pid:
        atexit._clear()  # W&B's, for one, would delete a folder of the process of the tests
        atexit.register(multiprocessing.util._exit_function)
        try:
            leave()
        finally:
            atexit._run_exitfuncs()
            os._exit(3)
    timer = threading.Timer(20, os.kill, (pid, 9))
    timer.start()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    assert os.waitstatus_to_exitcode(status) == 3
