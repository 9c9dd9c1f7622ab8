"""``python -m src.compare``: what differs, is pooled, is best, and must never be ranked."""

import copy
import csv
import io
import json
import math
import statistics
import subprocess
import sys

import pytest
import yaml
from conftest import CONF, ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.console import Console

from src.comparison.comparison import compare, direction
from src.comparison.find import find_runs
from src.comparison.output import show
from src.comparison.runs import Number, read_run
from src.comparison.table import formatted
from src.errors import DataError
from src.report.table import Cell, Grid

FID = "test/fid_classifier_360"
DDIM = {"_target_": "src.sampler.ddim.ddim", "_partial_": True, "num_steps": 50}
CONTEXT = {"weights": "EMA", "sampler": DDIM, "dataset": {"name": "digits"}, "step": 900}


@pytest.fixture(scope="module")
def config():
    """Resolved configurations of real command lines, composed once each."""
    known = {}

    def make(*words):
        if words not in known:
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("train", ["run_dir=/nowhere", *words])
            known[words] = OmegaConf.to_container(cfg, resolve=True)
        return copy.deepcopy(known[words])

    return make


@pytest.fixture
def run(config, tmp_path):
    """Write a run directory: overrides, seed, final metrics, and numbers of an evaluation.

    None: there was no evaluation.
    """

    def make(
        name, *words, seed=0, final=None, numbers=None, details=None, context=None, git="1234567890"
    ):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        provenance = {"git": git, "overrides": [f"run_dir={directory}", *words]}
        content = config(*words) | {
            "seed": seed,
            "run_dir": str(directory),
            "provenance": provenance,
        }
        content["callback"]["grid"] |= {"seed": seed, "dirpath": str(directory)}
        (directory / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (directory / "metrics.json").write_text(
            json.dumps({"parameters": 1234, "seconds": 9.5, "step": 900} | (final or {}))
        )
        if numbers is not None:
            content = numbers | {
                "context": CONTEXT | (context or {}),
                "details": details or {},
                "notes": [],
            }
            (directory / "evaluation.json").write_text(json.dumps(content))
        return directory

    return make


def compared(tmp_path, *patterns, sort=None):
    return compare(find_runs([str(tmp_path)]), patterns, sort)


def test_settings_are_those_that_were_typed(run, tmp_path):
    run("a", "schedule=cosine")
    run("b", "schedule=linear", "weighting=min_snr", "optimizer.lr=0.01", "trainer.max_steps=7")
    for path in tmp_path.iterdir():
        (path / "metrics.json").write_text('{"test/loss": 1.0}')
    found = compared(tmp_path)
    assert found.choices == {
        "schedule": ["cosine", "linear"],
        "weighting": ["uniform", "min_snr"],
        "optimizer.lr": ["0.003", "0.01"],
        "trainer.max_steps": [read_run(tmp_path / "a").settings["trainer.max_steps"], "7"],
    }
    assert [setting.label for setting in found.settings] == ["diffusion cosine", "diffusion linear"]


def test_copies_and_what_another_model_brings_are_not_shown(run, tmp_path):
    run("a", "model=vae", "model.latent_dim=4", final={"test/loss": 1.0})
    run(
        "b",
        "model=vae",
        "model.latent_dim=8",
        "network.encoder.channels=16",
        final={"test/loss": 1.0},
    )
    names = list(compared(tmp_path).choices)
    # the decoder's are interpolations
    assert names == ["model.latent_dim", "network.encoder.channels"]
    run("c", "schedule=linear", final={"test/loss": 1.0})
    found = compared(tmp_path)
    assert found.choices["model"] == ["vae", "vae", "diffusion"]
    assert not {"schedule", "sampler", "likelihood", "beta", "callback.ema"} & found.choices.keys()
    assert [setting.label for setting in found.settings] == [
        "vae latent_dim=4",
        "vae latent_dim=8",
        "diffusion",
    ]
    run("d", "schedule=cosine", final={"test/loss": 1.0})
    assert compared(tmp_path).choices["schedule"] == ["", "", "linear", "cosine"]


def test_folders_of_images_differ_by_their_root_and_data_sets_do_not(run, tmp_path):
    for dataset in ("mnist", "image_folder", "webdataset"):
        for root in "xy":
            words = ("model=vae", f"dataset={dataset}", f"dataset.root={root}")
            run(f"{dataset}-{root}", *words, seed=ord(root), final={"test/loss": 1.0})
    assert [len(setting.runs) for setting in compared(tmp_path).settings] == [1, 1, 2, 1, 1]


def test_seeds_are_pooled_and_single_runs_keep_their_error(run, tmp_path):
    values = [1.0, 1.5, 3.2]
    for seed, value in enumerate(values):
        details = {FID: {"error": 9.0, "error_kind": "bootstrap sd"}}
        run(
            f"a{seed}",
            seed=seed,
            numbers={FID: value, "test/mig": None if seed else 0.5},
            details=details,
        )
    run(
        "b",
        "schedule=linear",
        numbers={FID: 2.0},
        details={FID: {"error": 0.25, "error_kind": "bootstrap sd"}},
    )
    pooled, single = compared(tmp_path).settings
    assert pooled.seeds == "0, 1, 2 (n=3)"
    assert pooled.numbers[FID].value == pytest.approx(statistics.mean(values))
    assert pooled.numbers[FID].error == pytest.approx(
        math.sqrt(sum((v - 1.9) ** 2 for v in values) / 2)
    )
    assert (single.numbers[FID].value, single.numbers[FID].error) == (2.0, 0.25)
    assert (pooled.numbers["test/mig"].value, pooled.numbers["test/mig"].count) == (0.5, 1)
    assert pooled.numbers["parameters"].value == 1234


def test_the_same_seed_again_is_no_repeat_and_another_protocol_no_seed(run, tmp_path):
    run("a", numbers={FID: 1.0})
    run("b", numbers={FID: 2.0}, git="fedcba9")
    run("c", seed=1, numbers={FID: 2.0}, context={"weights": "raw"})
    run("d", seed=1, final={FID: 2.0})
    found = compared(tmp_path)
    yes = "diffusion evaluation=yes weights"
    labels = [f"{yes}=EMA a", f"{yes}=EMA b", f"{yes}=raw", "diffusion evaluation=no"]
    assert [setting.label for setting in found.settings] == labels
    assert found.choices.keys() == {"evaluation", "evaluation.weights"}


def test_best_follows_the_direction(run, tmp_path):
    best = {FID: {0}, "test/bits_per_dim_elbo": {0}, "test/mig": {1}, "test/loss": set()}
    run("a", numbers=dict.fromkeys(best, 1.0))
    run("b", "schedule=linear", numbers=dict.fromkeys(best, 2.0))
    run("c", "schedule=sigmoid", numbers=dict.fromkeys(best, 1.5))
    found = compared(tmp_path)
    assert {name: found.best(name) for name in found.metrics} == best


@pytest.mark.parametrize(
    ("sign", "names"),
    [
        (
            -1,
            "fid_corrected_classifier_360 kid_inception_10k nats_dynamic_iwae_5000 "
            "bits_per_dim nats_static",
        ),
        (
            1,
            "precision_classifier_360 recall_x coverage_x inception_score_x sap "
            "dci_disentanglement",
        ),
        (1, "factor_vae_score beta_vae_score psnr_compressed accuracy log_likelihood"),
        (0, "memorised_classifier_360 density_classifier_10k"),  # an honest model has 0.05 and 1
        (
            0,
            "loss elbo kl accuracy_of_classifier fid_floor_classifier_10k active_units rate "
            "confident_classifier",
        ),
    ],
)
def test_directions(sign, names):
    assert {
        direction(f"{stage}/{name}") for stage in ("test", "val") for name in names.split()
    } == {sign}


def judged(key="abc", n_real=1257, **details):
    """Details of a distance in the features that ``key`` tells."""
    return {
        FID: {
            "context": {"features": "classifier", "features_key": key, "n_real": n_real},
            **details,
        }
    }


def test_what_was_not_measured_alike_is_never_ranked(cli, run, tmp_path):
    run("a", numbers={FID: 1.0, "test/mig": 0.1, "test/bits_per_dim_elbo": 3.0}, details=judged())
    run("b", "schedule=linear", numbers={FID: 2.0, "test/mig": 0.2}, details=judged("xyz"))
    found = compared(tmp_path)
    assert (found.best(FID), found.best("test/mig"), found.best("test/bits_per_dim_elbo")) == (
        set(),
        {1},
        set(),
    )
    line = (
        "not comparable: features_key differs (abc: diffusion cosine; xyz: diffusion linear): "
        + FID
    )
    assert line in cli("compare", ".").out
    assert line in (tmp_path / "comparison.md").read_text()
    run("c", "model=vae", "dataset=shapes", numbers={"test/mig": 0.3})
    assert compared(tmp_path).best("test/mig") == set()
    line = (
        "not comparable: dataset differs (digits: diffusion cosine, diffusion linear; shapes: vae)"
    )
    assert line in cli("compare", ".").out


def test_effort_is_told_and_forbids_a_ranking_only_where_it_changes_the_meaning(cli, run, tmp_path):
    bound, flow = "test/bits_per_dim", "test/bits_per_dim_flow"
    for name, steps in (("a", 50), ("b", 100)):
        details = {
            bound: {"context": {"timesteps": steps, "estimate": f"vlb_{name}", "seed": steps}}
        }
        details |= {flow: {"context": {"flow_steps": steps, "estimate": "flow"}}}
        words = ("schedule=linear",) if name == "b" else ()
        run(
            name,
            *words,
            numbers={bound: steps, flow: steps},
            details=details,
            context={"overrides": [f"output={name}"]},
        )
    found = compared(tmp_path)
    assert (found.best(bound), found.best(flow)) == ({0}, set())
    assert found.obstacles(flow).keys() == {"flow_steps"}
    assert cli("compare", ".").code == 0
    page = (tmp_path / "comparison.md").read_text()
    assert f"- timesteps 50, 100, estimate vlb_a, vlb_b: `{bound}`" in page
    assert (
        "not comparable: flow_steps differs (50: diffusion cosine; 100: diffusion linear): " + flow
        in page
    )
    assert "output=a" not in page


@pytest.mark.parametrize("changed", [{"n_real": 7}, {"key": "xyz"}])
def test_seeds_that_were_not_measured_alike_have_no_mean(run, tmp_path, changed):
    run("a", numbers={FID: 1.0}, details=judged())
    run("b", seed=1, numbers={FID: 2.0}, details=judged(**changed))
    (setting,) = compared(tmp_path).settings
    assert setting.numbers[FID].value is None
    assert setting.numbers[FID].reason.startswith(
        "no mean: " + {"key": "features_key"}.get(*changed, *changed)
    )


def test_how_it_was_evaluated_is_a_setting(run, tmp_path):
    run("a", numbers={FID: 1.0})
    run("b", seed=1, numbers={FID: 1.0}, context={"sampler": DDIM | {"num_steps": 10}})
    run(
        "c",
        seed=2,
        numbers={FID: 1.0},
        context={"sampler": {"_target_": "src.sampler.heun.heun", "num_steps": 10}},
    )
    found = compared(tmp_path)
    assert found.choices == {
        "evaluation.sampler": ["ddim", "ddim", "heun"],
        "evaluation.sampler.num_steps": ["50", "10", "10"],
    }


def test_distances_of_training_compare_at_equal_features_and_numbers_only(run, tmp_path):
    run("a", final={"test/fid_classifier": 1.0})
    run("b", "schedule=linear", final={"test/fid_classifier": 2.0})
    assert compared(tmp_path).best("test/fid_classifier") == {0}
    run("c", "callback.generation.test_samples=10", final={"test/fid_classifier": 2.0})
    obstacles = compared(tmp_path).obstacles("test/fid_classifier")
    assert obstacles.keys() == {"callback.generation.test_samples"}
    run("d", "features.num_steps=1", final={"test/fid_classifier": 2.0})
    assert compared(tmp_path).obstacles("test/fid_classifier").keys() == {
        *obstacles,
        "features.num_steps",
    }
    assert compared(tmp_path).best("test/fid_classifier") == set()


def test_runs_are_found(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("multirun/0-a", "multirun/2-a", "multirun/10-a", "other"):
        run(name, final={"test/loss": 1.0})
    wandb = tmp_path / "other/wandb/offline-run/files"
    wandb.mkdir(parents=True)
    (wandb / "config.yaml").write_text("wandb_version: 1")
    (tmp_path / "note.txt").touch()
    every = ["multirun/0-a", "multirun/2-a", "multirun/10-a", "other"]
    for words, expected in (
        (["multirun"], every[:3]),
        (["*"], every),
        (["**"], every),
        (["other", "./other", "*/2-a", "multirun/2-a"], ["other", "multirun/2-a"]),
        ([str(tmp_path / "mul*")], [str(tmp_path / name) for name in every[:3]]),
    ):
        assert [str(path) for path in find_runs(words)] == expected, words


def test_page_and_table_tell_the_same(cli, run, tmp_path):
    kid = "test/kid_classifier_360"
    details = judged(error=0.1234, error_kind="bootstrap sd") | {
        kid: {"error": None, "reason": "too | few samples"}
    }
    run("a", numbers={FID: 0.98472, kid: None}, details=details, context={"step": 450})
    run("b", "schedule=linear", numbers={FID: 2.0, kid: 0.1}, details=judged(), git="fedcba9+")
    run("c", "schedule=sigmoid", final={"test/loss": 0.5, "val/loss": 0.25})
    done = cli("compare", "a", "b", "c", "--output", "made")
    assert done.code == 0, done
    page = (tmp_path / "made/comparison.md").read_text()
    for text in (
        "–¹",
        "¹ too | few samples",
        "evaluated at step 450 of 900: a",
        "±: bootstrap sd",
        "src.evaluate",
    ):
        assert text in done.out
        assert text in page
    assert "* 0.985 ± 0.12" in done.out
    assert f"| {FID} | **0.985 ± 0.12** | 2 |  |" in page
    assert "not of one commit: 1234567 (2), fedcba9+ (1)" in page
    assert f"- features classifier, features_key abc, n_real 1257: `{FID}`" in page
    assert "- sampler: ddim num_steps=50" in page
    assert "| diffusion linear | b | 0 | 900 | yes | fedcba9+ | `schedule=linear` |" in page
    assert "val/loss" not in done.out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "made/comparison.csv").read_text())))
    assert [row["schedule"] for row in rows] == ["cosine", "linear", "sigmoid"]
    assert (float(rows[0][FID]), float(rows[0][f"{FID}_error"]), rows[1][f"{FID}_error"]) == (
        0.98472,
        0.1234,
        "",
    )
    assert (rows[0][kid], rows[2]["val/loss"], rows[2]["parameters"]) == ("", "0.25", "1234")


def test_metrics_are_chosen_and_settings_ordered(run, tmp_path):
    for name, value in (("cosine", 2.0), ("linear", 1.0), ("sigmoid", None), ("quadratic", 3.0)):
        run(
            name,
            f"schedule={name}",
            numbers={FID: value, "test/mig": value, "test/loss": 1.0, "val/loss": 1.0},
        )
    assert compared(tmp_path, "fid*", "val/*").metrics == [FID, "val/loss"]
    for sort, order in (
        (FID, "linear cosine quadratic sigmoid"),
        ("mig", "quadratic cosine linear sigmoid"),
    ):
        found = compared(tmp_path, sort=sort)
        assert [setting.runs[0].path.name for setting in found.settings] == order.split()
        assert found.choices["schedule"] == order.split()


@pytest.mark.parametrize("width", [80, 120, 160])
@pytest.mark.parametrize("many", [3, 9])
def test_the_table_fits_the_terminal(run, tmp_path, width, many):
    for i in range(many):
        numbers = {f"test/precision_classifier_{n}": 0.12345 + i for n in range(7)}
        run(f"run-{i}", numbers=numbers, context={"sampler_steps": i})
    console = Console(width=width, file=io.StringIO())
    show(compared(tmp_path), console)
    drawn = [line for line in console.file.getvalue().splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, drawn)) <= width
    for i in range(many):
        assert console.file.getvalue().count(f"{i}.123") == 7


def test_blocks_repeat_the_first_column_and_lose_none():
    grid = Grid(["", "a", "b" * 30, "c", "d" * 90], [[Cell("row"), *[Cell("1")] * 4]])
    assert grid.blocks(200) == [[0, 1, 2, 3, 4]]
    assert grid.blocks(60) == [[0, 1, 2, 3], [0, 4]]
    assert grid.blocks(20) == [[0, 1], [0, 2], [0, 3], [0, 4]]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.98472, 0.1234, "0.985 ± 0.12"),
        (86.3521, 0.02, "86.35 ± 0.020"),
        (123.4567, 0.012, "123.46 ± 0.012"),
        (-0.00058, 1.8e-5, "-0.000580 ± 0.000018"),
        (62750.9, None, "62751"),
        (16.0, None, "16"),
        (701345, None, "701,345"),
        (0.0, None, "0"),
        (1.5e-9, 2e-10, "1.50e-09 ± 2.0e-10"),
    ],
)
def test_digits_follow_the_error(value, error, text):
    assert formatted(Number(value, error)) == text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "RUN"),
        (["a", "--bogus"], 2, "--bogus"),
        (
            ["a", "--metric", "fud*"],
            2,
            "--metric=fud*: no run has such a metric; there are, for example, test/",
        ),
        (["a", "--sort", "nope"], 2, "--sort=nope"),
        (["nowhere"], 4, "nowhere: no such run directory"),
        (["empty"], 4, "empty: no run directory"),
        (["e*", "a"], 4, "e*: matches no run directory"),
        (["damaged"], 3, "damaged/metrics.json: damaged"),
        (["foreign"], 3, "foreign/config.yaml: not the configuration of a run"),
        (["a", "--output", "a/config.yaml/x"], 5, "cannot write a/config.yaml/x/comparison.md"),
    ],
)
def test_errors_are_one_line_with_the_right_code(cli, run, tmp_path, words, code, message):
    run("a", final={"test/fid_classifier": 1.0, "test/loss": 1.0})
    (run("damaged") / "metrics.json").write_text('{"test/loss": ')
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.yaml").write_text("x: 1")
    done = cli("compare", *words)
    assert done.code == code, done
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "comparison.md").exists()


def test_runs_without_numbers(cli, run, tmp_path):
    (run("a") / "metrics.json").unlink()
    done = cli("compare", "a")
    assert (done.code, "has no numbers yet" in done.err) == (3, True)
    run("b", "schedule=linear", final={"test/loss": float("nan"), "test/mse": 1.0})
    done = cli("compare", "a", "b")
    assert done.code == 0, done
    assert "¹ not finite (nan)" in done.out
    assert "without numbers (neither metrics.json nor evaluation.json): a" in done.out


def test_nothing_heavy_is_read():
    heavy = "{'torch', 'hydra', 'omegaconf', 'matplotlib'}"
    code = f"import sys, src.compare, src.comparison.output; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_further_evaluations_of_a_run_compare_like_runs(run, tmp_path):
    first = run("one", numbers={FID: 1.0})
    heun = {"_target_": "src.sampler.heun.heun", "_partial_": True, "num_steps": 50}
    context = CONTEXT | {"sampler": heun, "checkpoint": str(first / "checkpoints" / "last.ckpt")}
    for folder in (first / "heun", tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({FID: 2.0, "context": context}))
    comparison = compare(find_runs([str(first), str(first / "heun")]))
    assert [setting.label for setting in comparison.settings] == [
        "diffusion sampler=ddim",
        "diffusion sampler=heun",
    ]
    assert [setting.numbers[FID].value for setting in comparison.settings] == [1.0, 2.0]
    assert find_runs([str(tmp_path)]) == [tmp_path / "elsewhere", first], (
        "evaluations inside a run are its own matter"
    )
    (tmp_path / "elsewhere" / "evaluation.json").write_text(json.dumps({FID: 2.0, "context": {}}))
    with pytest.raises(DataError, match="not the configuration of a run"):
        compare(find_runs([str(tmp_path / "elsewhere")]))
