"""Hydra's own options: wherever they stand, and in the commands of jobs and of a resume."""

import shlex
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from src.config.command import composing_words
from src.config.options import split_options
from src.errors import ConfigError
from src.launch.job import Job

SPLIT = [
    (["a=b", "--multirun", "c=d"], ["--multirun"], ["a=b", "c=d"]),
    (["a=b", "-m", "c=d", "-cd", "own", "e=f"], ["--multirun", "--config-dir=own"], 3),
    (["--config-dir", "x y", "~a"], ["--config-dir=x y"], ["~a"]),
    (["a=b", "--cfg", "job", "c=-1"], ["--cfg=job"], ["a=b", "c=-1"]),
    (["a=b", "-c=job", "--resolve", "c=d"], ["--cfg=job", "--resolve"], 2),
    (["--info", "a=b"], ["--info=all"], ["a=b"]),
    (["a=b", "-i", "searchpath", "c=d"], ["--info=searchpath"], 2),
    (["--multi", "a=b"], ["--multirun"], ["a=b"]),
    (["-h"], ["--help"], []),
    (["--", "a=b"], [], ["--", "a=b"]),
]


@pytest.mark.parametrize(("words", "options", "overrides"), SPLIT)
def test_options_may_stand_anywhere(words, options, overrides):
    found, rest = split_options(words)
    assert found == options
    assert rest == overrides or len(rest) == overrides


REFUSED = [
    (["a=b", "--multrun"], "--multrun: there is no such option; did you mean --multirun?"),
    (["-x", "a=b"], "-x: there is no such option; --hydra-help shows those that there are"),
    (["--config", "a=b"], "--config: there is no such option"),
    (["a=b", "--config-dir"], "--config-dir=: needs a value, as in --config-dir VALUE"),
    (["--cfg", "jobs"], "--cfg=jobs: must be job, hydra, all"),
    (["--multirun=yes"], "--multirun=yes: takes no value"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_options_that_are_none_are_refused_in_one_line(cli, words, message):
    with pytest.raises(ConfigError) as caught:
        split_options(words)
    assert str(caught.value).startswith(message)
    done = cli("train", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)


def hydra_with(*places):
    """Hydra's node as it is where files are looked for in ``places`` (provider, schema, path)."""
    keys = ("provider", "schema", "path")
    sources = [dict(zip(keys, place, strict=True)) for place in places]
    return OmegaConf.create({"runtime": {"config_sources": sources}})


def test_places_of_files_reach_other_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--config-name=mine", "--multirun", "seed=1,2"])
    searched = "hydra.searchpath in command-line"
    hydra = hydra_with(
        ("hydra", "pkg", "hydra.conf"),
        ("main", "file", "/project/conf"),
        ("command-line", "file", "own dir"),
        (searched, "file", "it's"),
        (searched, "pkg", "theirs.conf"),
        ("schema", "structured", ""),
    )
    words = composing_words(hydra)
    assert words == [
        "--config-name=mine",
        f"--config-dir={tmp_path}/own dir",
        f"hydra.searchpath=['file://{tmp_path}/it\\'s','pkg://theirs.conf']",
    ]
    job = Job(0, ["seed=1"], tmp_path / "0", "val/loss", places=words)
    assert job.command[3:7] == [*words, "seed=1"]
    assert composing_words(hydra_with(("main", "file", "/project/conf"))) == ["--config-name=mine"]


@pytest.mark.parametrize("place", ["[nope]", "[file://nope]", "['no pe',/]"])
def test_a_place_that_is_not_there_is_refused(cli, place):
    done = cli("train", f"hydra.searchpath={place}", "hydra.run.dir=run")
    assert done.code == 2, done
    assert "error: hydra.searchpath=no" in done.err
    assert "must be a directory that is there" in done.err


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own dir" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    content = "defaults:\n  - override /model: vae\nmodel:\n  latent_dim: 3\n"
    file.write_text(f"# @package _global_\n{content}")
    return tmp_path


def latents(folder):
    files = sorted(folder.glob("*/config.yaml"))
    return [yaml.safe_load(file.read_text())["model"]["latent_dim"] for file in files]


@pytest.mark.slow
def test_a_run_shows_how_to_go_on_with_its_files(cli, small, own, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    words = [*small, "callback.generation=null", "callback.grid=null"]
    done = cli("train", *words, "experiment=mine", "-cd", "own dir", "hydra.run.dir=runs/run")
    assert done.code == 0, done
    resume = next(line for line in done.out.splitlines() if line.split()[:1] == ["resume"])
    assert f"--config-dir={own}/own dir" in shlex.split(resume)
    done = cli("train", *shlex.split(resume)[4:])
    assert done.code == 0, done
    assert latents(own / "runs") == [3]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["--config-dir=own dir", "hydra.searchpath=['file://own dir']"])
@pytest.mark.parametrize("kind", ["seed=1,2", "sweep=study seed=choice(1,2) sweep.trials=2"])
def test_jobs_find_the_files_of_their_driver(cli, small, own, place, kind):
    words = [*small, "callback.generation=null", "callback.grid=null"]
    words += ["experiment=mine", place, "-m", *kind.split(), "hydra.sweep.dir=sweep"]
    done = cli("train", *words)
    assert done.code == 0, done
    assert latents(own / "sweep") == [3, 3]
