"""Files that others wrote, of every kind: a checked value or one line, never another exception."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from src.comparison.comparison import compare
from src.comparison.output import comma_separated, markdown, show
from src.errors import DataError, ProjectError, StorageError
from src.foreign import json_object, naming, read_json
from src.launch.job import Job, record_of, recorded
from src.logger.wandb_logger import _run_id
from src.report.curves import draw_curves
from src.report.jobs import print_jobs, write_jobs
from src.rundir.history import read_history
from src.rundir.lock import held, locked
from src.rundir.store import CheckpointStore

MOST = int(os.environ.get("GENBENCH_EXAMPLES", "15"))  # of what is slow; by hand also 1,000
VAE = "src.model.vae.VAE"
CONFIG = {
    "seed": 0,
    "model": {"_target_": VAE, "latent_dim": 2},
    "schedule": {"_target_": "src.schedule.cosine.cosine", "num_timesteps": 20},
    "dataset": {"load": {"_target_": "src.dataset.digits.load"}, "flip": False},
    "provenance": {"git": "1234567+", "overrides": ["seed=0"]},
}
METRICS = {"test/loss": 1.5, "val/loss": None, "parameters": 12, "seconds": 2.5, "step": 9}
EVALUATION = {
    "test/fid_pixels": 2.0,
    "test/loss": None,
    "details": {
        "test/fid_pixels": {"error": 0.1, "error_kind": "sd", "context": {"n_fake": 8}},
        "test/loss": {"error": None, "reason": "too few", "context": {}},
    },
    "context": {"weights": "EMA", "step": 9, "sampler": {"_target_": "src.sampler.ddim.ddim"}},
    "notes": ["one"],
}
LOCK = {"host": "h", "pid": 1, "start": "b 1", "time": "t", "job": "slurm-1", "attempt": 1}
JOB = {
    "number": 3,
    "overrides": ["seed=1"],
    "code": 0,
    "status": "done",
    "detail": "",
    "metric": 0.5,
    "metric_name": "val/loss",
    "handle": None,
    "name": "seed=1",
    "starts": 1,
    "run_dir": "/tmp/3-vae",
}
HISTORY = "step,epoch,train/loss\n0,0,1.5\n1,0,\n"

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 2**31, 2**63, 10**30, 10**400, -(10**30)]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "\x1b[2J", "\ud800", "\0", "../..", "[/x]", "=1+1", "x" * 5000]),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
JSONS = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b'{"pid": ' + b"9" * 5000]),
)


@st.composite
def altered(draw, content):
    """JSON of ``content`` in which one value, at any depth, is another, or is gone."""
    content = json.loads(json.dumps(content))
    node = content
    while True:
        key = draw(st.sampled_from(sorted(node)))
        if isinstance(node[key], dict) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        if draw(st.integers(0, 5)):
            node[key] = draw(VALUES)
        else:
            del node[key]
        return json.dumps(content).encode()


def contents(content):
    return JSONS | altered(content)


@contextlib.contextmanager
def folder(**files):
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            path = Path(name, file.replace("__", "/").replace("_", "."))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        yield Path(name)


def compared(directory):
    """All that a comparison makes of it; a ProjectError is of one line."""
    try:
        comparison = compare([directory], ["*"])
    except ProjectError:
        return None
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        show(comparison, Console(file=nowhere, width=100))
    pages = markdown(comparison), comma_separated(comparison)
    for page in pages:
        page.encode()
    return pages


@settings(max_examples=MOST)
@given(contents(METRICS), contents(EVALUATION), contents(CONFIG))
@example(json.dumps(METRICS).encode(), json.dumps(EVALUATION).encode(), b"model: {a: !!int ''}")
@example(json.dumps({"step": float("nan"), "test/a": 1}).encode(), b"{}", b"model: {a: 1}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: {a: !!bool foo}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: {a: 1:99:99" + b":99" * 300 + b"}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: {a: 0x" + b"f" * 9000 + b"}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: {1: {_target_: 7}, ~: [1], 1.5: {a: b}}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: {? [a] : 1}")
@example(json.dumps(METRICS).encode(), b"{}", b"model: &a {a: *a}")
@example(json.dumps(METRICS).encode(), b"{}", b"\xff\xfe")
@example(json.dumps(METRICS).encode(), b"{}", b"[" * 9000)
def test_a_comparison_reads_any_run(metrics, evaluation, config):
    whole = json.dumps(CONFIG).encode(), json.dumps(METRICS).encode()
    for run in (
        {"config_yaml": config, "metrics_json": whole[1]},
        {"config_yaml": whole[0], "metrics_json": metrics},
        {"config_yaml": whole[0], "metrics_json": whole[1], "evaluation_json": evaluation},
    ):
        with folder(**run) as directory:
            compared(directory)


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))
)
def test_a_comparison_reads_any_text_for_a_configuration(config):
    with folder(config_yaml=b"model: {a: 1}\nx: " + config, metrics_json='{"test/a": 1}') as run:
        compared(run)


def test_a_sound_run_is_read():
    files = {"config_yaml": yaml.safe_dump(CONFIG), "metrics_json": json.dumps(METRICS)}
    with folder(**files, evaluation_json=json.dumps(EVALUATION)) as directory:
        page, table = compared(directory)
    assert "2.0 ± 0.1" in page.replace("2.00", "2.0").replace("0.10", "0.1")
    assert "too few" in page
    assert "test/fid_pixels" in table


@given(contents(LOCK))
@example(json.dumps(LOCK | {"pid": 10**30}).encode())
@example(json.dumps(LOCK | {"pid": -1}).encode())
@example(json.dumps(LOCK | {"pid": True}).encode())
def test_a_lock_of_anybody_is_a_reason_or_none(content):
    with folder(_lock=content) as directory:
        reason = held(directory)
        refused = pytest.raises(StorageError) if reason else contextlib.nullcontext()
        with refused as caught, locked(directory):
            pass
        assert caught is None or reason in str(caught.value)


@given(contents({"file": "step-00000004.ckpt", "step": 4}))
def test_any_pointer_gives_candidates(content):
    with folder(latest_json=content) as directory:
        for step in (2, 4):
            (directory / f"step-{step:08d}.ckpt").touch()
        (directory / f"step-{'9' * 200}.ckpt").touch()
        for path in CheckpointStore(directory).candidates():
            assert path.exists()


@settings(max_examples=MOST)
@given(contents(JOB))
@example(json.dumps(JOB | {"number": "3"}).encode())
@example(json.dumps(JOB | {"overrides": [1]}).encode())
@example(b"[]")
def test_any_record_of_a_job_is_shown_or_left_out(content):
    with folder(jobs__3_json=content) as sweep:
        known = recorded(sweep)
        write_jobs(known, sweep / "jobs.csv")
        with contextlib.redirect_stdout(open(os.devnull, "w", encoding="utf-8")):
            print_jobs(known, sweep / "jobs.csv")
        if known:
            assert record_of(sweep, 3) == known[0]
        else:
            with pytest.raises(DataError, match="damaged"):
                record_of(sweep, 3)


@settings(max_examples=MOST)
@given(contents(METRICS), contents({"step": 3, "val/loss": 2.0}))
def test_any_numbers_of_a_job_leave_it_a_record(metrics, pruned):
    with folder(run__metrics_json=metrics, run__pruned_json=pruned) as sweep:
        job = Job(3, [], sweep / "run", "val/loss")
        job.settle(0)
        assert job.status in ("done", "pruned", "failed")
        assert record_of(sweep, 3)["status"] == job.status


CELLS = ["0", "7", "-1", "1.5", "nan", "inf", "1e400", "x", "9" * 19, "\u0663"]
ROWS = st.lists(st.sampled_from(CELLS), max_size=4)


@given(
    st.one_of(
        st.binary(max_size=60).map(lambda data: data + b"\n"),
        st.lists(ROWS.map(",".join), max_size=4).map(
            lambda rows: ("step,epoch,train/loss\n" + "\n".join(rows) + "\n").encode()
        ),
        st.sampled_from([b"step,a\n1," + b"x" * 200_000 + b"\n", b"a,step\n1\n", b'step\n"1']),
    )
)
@example(b"step,train/loss\n1,1e308\n2,-1e308\n3,inf\n4,nan\n")
@example(b"step,train/loss,val/fid_$\\frac\n1,1,1\n2,2,2\n")
@example(b"step,val/fid_$a_{$\n1,1\n2,2\n")
def test_any_history_is_numbers_or_one_line(content):
    with folder(metrics_csv=content) as run:
        try:
            history = read_history(run)
        except DataError:
            return
        for steps, values in history.values():
            assert len(steps) == len(values)
            assert all(isinstance(value, float) for value in values)


def test_curves_of_odd_numbers_and_names_are_drawn(tmp_path):
    history = {
        "train/loss": ([1, 2, 3, 4], [1e308, -1e308, float("inf"), float("nan")]),
        "val/loss": ([1], [float("nan")]),
        "val/fid_$\\frac": ([1, 2], [5e-324, 1e308]),
        "val/fid_$a_{$\x1b": ([10**18], [1.0]),
    }
    draw_curves(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_history_takes_the_parts_of_the_run_alone(tmp_path):
    for name, step in (("metrics-2", 2), ("metrics-10", 10), ("metrics-old", 50), ("metrics", 11)):
        (tmp_path / f"{name}.csv").write_text(f"step,a\n{step},{step}\n1,{step}\n")
    assert read_history(tmp_path) == {"a": ([1, 2, 10, 11], [11.0, 2.0, 10.0, 11.0])}


@settings(max_examples=MOST)
@given(contents({"id": "abc123"}))
@example(b'{"id": "../../x"}')
@example(b'{"id": 7}')
def test_any_file_of_wandb_gives_an_id(content):
    with folder(wandb_json=content) as run:
        first = _run_id(run, None)
        assert first.isascii()
        assert "/" not in first
        assert _run_id(run, None) == first


ENTRIES = {
    "a pipe": os.mkfifo,
    "a directory": os.mkdir,
    "a link to a device": lambda path: os.symlink("/dev/zero", path),
    "a link to itself": lambda path: os.symlink(path, path),
    "a link to nothing": lambda path: os.symlink("/nowhere/at/all", path),
    "a sparse file": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**31),
}
FILES = (
    "config.yaml",
    "metrics.json",
    "evaluation.json",
    "metrics.csv",
    "wandb.json",
    "latest.json",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ENTRIES)
def test_what_is_no_file_is_not_read(tmp_path, kind, name):
    whole = {"config.yaml": CONFIG, "metrics.json": METRICS, "evaluation.json": EVALUATION}
    for file, content in whole.items():
        if file != name:
            (tmp_path / file).write_text(json.dumps(content))
    ENTRIES[kind](tmp_path / name)
    if name in whole:
        with pytest.raises(ProjectError) as caught:
            compare([tmp_path])
        assert name in str(caught.value)
        assert caught.value.exit_code in (3, 5)
    elif name == "metrics.csv":
        refused = pytest.raises(ProjectError)
        with refused if (tmp_path / name).exists() else contextlib.nullcontext():
            assert read_history(tmp_path) == {}  # of a link to nothing
    elif name == "latest.json":
        assert CheckpointStore(tmp_path).candidates() == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "levels"),
        ('{"a": ' * 40 + "1" + "}" * 40, "more than 32 levels"),
        ('{"a": %s}' % ("9" * 21), "number of 21 digits"),
        ('{"a": %s}' % ("9" * 9000), "number of 9000 digits"),
        ("[1]", "mapping"),
        ("", "Expecting value"),
        ('{"a": [' + "1," * 100_001 + "1]}", "more than 100000 values"),
    ],
)
def test_reasons_of_json(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        json_object(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=f"x.json: damaged .*{reason}"), naming(tmp_path / "x.json"):
        read_json(tmp_path / "x.json")


def test_more_settings_than_a_run_has_are_refused(tmp_path):
    config = {"model": {"a": 1}} | {f"k{i}": i for i in range(6000)}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(DataError, match="config.yaml: has more than 5000 settings"):
        compare([tmp_path])


def test_a_comparison_of_a_deep_file_is_refused_in_one_line(cli, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").write_text(json.dumps(CONFIG))
    (tmp_path / "a/metrics.json").write_text('{"a":' * 100_000)
    done = cli("compare", "a")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "a/metrics.json: damaged (holds more than 32 levels" in done.err
