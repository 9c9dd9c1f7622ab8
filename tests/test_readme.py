"""Every command of the README runs; its table of groups is complete."""

import re
import shlex
import struct
import subprocess

import numpy as np
import pytest
from conftest import CONF, ROOT, options
from PIL import Image

from src.rundir.checkpoint import load_model

README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    shlex.split(line, comments=True)
    for line in BLOCKS.splitlines()
    if line.startswith("python -m src.")
]


@pytest.fixture
def places(tmp_path):
    """The README's placeholders: a folder of pictures, and MNIST files that spare the download."""
    (tmp_path / "PICTURES").mkdir()
    noise = np.random.default_rng(0)
    for i in range(200):
        Image.fromarray(noise.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(
            tmp_path / "PICTURES" / f"{i}.jpg"
        )
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, num in (("train", 5300), ("t10k", 50)):
        pixels = noise.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, num, 28, 28) + pixels.tobytes()
        )
        labels = (np.arange(num) % 10).astype(np.uint8)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, num) + labels.tobytes()
        )
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(cli, small, places):
    assert len(COMMANDS) > 12
    assert cli("train", *small, "hydra.run.dir=RUN").code == 0
    for number, words in enumerate(COMMANDS):
        entry = words[2].removeprefix("src.")
        words = [
            "trainer.max_steps=2" if word.startswith("trainer.max_steps=") else word
            for word in words
        ]
        extra = (
            [*small, "trainer.max_steps=1"] if entry == "train" and "--help" not in words else []
        )
        extra = [
            w for w in extra if not any(w.startswith(f"{own.partition('=')[0]}=") for own in words)
        ]
        if entry == "sample":
            extra = [f"output=out{number}", "trainer=cpu"]
        if entry == "evaluate":
            extra = [
                "num_samples=4",
                *(["score.num_images=4"] if "score=null" not in words else []),
            ]
        done = cli(entry, *words[3:], *extra)
        assert done.code == 0, f"{words}: {done.err}"
    assert load_model(places / "RUN").sample(2).shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_make_train_runs_the_main_job(tmp_path):
    """The two commands share ``install``, which has nothing to do here: ``-o`` takes it as done."""
    arguments = (
        f"ARGS=trainer=debug logger=csv callback.generation=null hydra.run.dir='{tmp_path}/a run'"
    )
    done = subprocess.run(
        ["make", "-o", ".venv/.installed", "train", arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "a run" / "metrics.json").exists()
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True)
    assert "-m pytest" in planned.stdout


def test_the_table_names_every_option():
    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    for group in (folder.name for folder in CONF.iterdir() if folder.is_dir()):
        assert f"`{group}`" in table
        for option in options(group):
            assert f"`{option}`" in table, f"{group}={option}"


def test_pictures_of_the_readme_are_there():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert Image.open(ROOT / picture).size[0] > 100
