"""Studies with jobs that take no time: what Optuna is asked and told, and what is refused."""

from functools import partial
from pathlib import Path

import optuna
import pytest
from conftest import options
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from studies import SPACE, Launcher, composed, run_study

from src.errors import ConfigError, StorageError
from src.launch.job import available, recorded
from src.sweep.space import parse
from src.sweep.storage import JOURNAL, open_storage
from src.sweep.study import Trials
from src.sweep.sweeper import sweep


@pytest.fixture
def run(tmp_path):
    """Run a study in the test's folder."""
    return partial(run_study, tmp_path)


@pytest.mark.parametrize("search", [name for name in options("search") if name != "grid"])
def test_every_search_draws_the_total_within_the_space(run, search, tmp_path, capsys):
    launcher, study, _ = run("sweep.trials=6", "hydra.launcher.jobs=4", f"search={search}")
    assert launcher.batches == [[0, 1, 2, 3], [4, 5]]
    assert [trial.state for trial in study.trials] == 6 * [TrialState.COMPLETE]
    for trial in study.trials:
        job = launcher.jobs[trial.number]
        assert trial.values == [job["optimizer.lr"]], "the very number that the job was given"
        assert 0.1 <= job["optimizer.lr"] <= 1
        assert job["model.latent_dim"] in range(1, 9)
        assert job["model"] == "vae", "what is typed goes to every job"
        assert "sweep.trials" not in job, "may change when the study goes on"
    assert len({trial.values[0] for trial in study.trials}) == 6, (
        "a sampler of the same seed repeats nothing"
    )
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert f"best  {study.best_trial.number}  val/loss=" in capsys.readouterr().out


def test_a_grid_is_every_combination_once(run):
    space = (
        "beta.value=1,2.5",
        "likelihood=choice(gaussian,logistic)",
        "model.latent_dim=range(2,7,2)",
    )
    loss = {"metrics": lambda values: {"val/loss": values["beta.value"]}}
    first, _, _ = run("sweep.trials=5", "search=grid", space=space, **loss)
    rest, study, _ = run(
        "sweep.trials=100", "search=grid", "hydra.launcher.jobs=3", space=space, **loss
    )
    assert len(first.jobs) == 5
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(points) == len(set(points)) == 2 * 2 * 3
    assert not first.jobs.keys() & rest.jobs.keys()


def test_a_study_goes_on_to_its_total(run):
    assert list(run("sweep.trials=3")[0].jobs) == [0, 1, 2]
    assert list(run("sweep.trials=5")[0].jobs) == [3, 4]
    assert list(run("sweep.trials=5")[0].jobs) == []


def test_a_failing_job_is_a_failed_trial_and_the_rest_goes_on(run):
    launcher, study, error = run("sweep.trials=5", fails=(1, 3))
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]
    assert str(error).startswith("job 1 failed: exit code 6: "), "and is not forgotten at the end"
    assert "(2 of 5 jobs not done)" in str(error)
    metrics = {"metrics": lambda values: {"val/loss": None if values["sweep.trial"] == 5 else 1.0}}
    _, study, error = run("sweep.trials=7", **metrics)
    assert [trial.state.name for trial in study.trials][5:] == ["FAIL", "COMPLETE"], (
        "metrics.json has null for NaN"
    )


def test_what_has_failed_is_not_forgotten(run):
    run("sweep.trials=1", fails=(0,))
    _, study, error = run("sweep.trials=2")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert "1 trials of the study have failed, trial 0 first" in str(error)


def test_settings_that_make_no_configuration_are_a_failed_trial(run, tmp_path):
    launcher, study, error = run("sweep.trials=3", "hydra.launcher.jobs=2", refuses=(0,))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert list(launcher.jobs) == [1, 2]
    assert str(error).startswith("job 0 failed: optimizer.lr=0.")
    assert recorded(tmp_path)[0]["status"] == "failed"


def test_jobs_that_have_ended_without_a_driver_count(run, tmp_path):
    """As Slurm's may: the study takes their results and goes on to its total."""
    run("sweep.trials=4", "hydra.launcher.jobs=2", dies=(0,))
    for number in (0, 1):
        (tmp_path / f"{number}-vae-digits").mkdir()
        (tmp_path / f"{number}-vae-digits" / "metrics.json").write_text('{"val/loss": 7}')
    launcher, study, error = run("sweep.trials=4", "hydra.launcher.jobs=2")
    assert [trial.state.name for trial in study.trials] == 4 * ["COMPLETE"]
    assert [trial.value for trial in study.trials][:2] == [7, 7]
    assert (list(launcher.jobs), error) == ([2, 3], None)


def test_an_objective_that_no_job_measures_is_told_at_the_first(run):
    with pytest.raises(
        ConfigError,
        match="sweep.objectives.val/los: is not in .*metrics.json; did you mean val/loss",
    ):
        run("sweep.trials=3", "sweep.objectives={val/los:minimize}")


def test_drivers_must_share_a_directory(run, tmp_path):
    words = ["sweep.trials=2", f"sweep.storage=sqlite:///{tmp_path}/study.db"]
    run(*words)
    with pytest.raises(
        ConfigError, match="with another sweep directory than hydra.sweep.dir=.*; all drivers must"
    ):
        run_study(tmp_path / "elsewhere", *words)


def test_a_stopped_job_is_no_result_and_goes_on_with_the_study(run):
    launcher, study, error = run("sweep.trials=3", stops=(1,))
    assert error
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "COMPLETE"]
    again, study, error = run("sweep.trials=3")
    assert again.jobs == {1: launcher.jobs[1]}
    assert error is None


def test_trials_of_a_dead_driver_are_run_again_with_their_parameters(run):
    killed, study, _ = run("sweep.trials=6", "hydra.launcher.jobs=3", dies=(4,))
    assert [trial.state.name for trial in study.trials] == 4 * ["COMPLETE"] + 2 * ["RUNNING"]
    drawn = {trial.number: dict(trial.params) for trial in study.trials}
    again, study, _ = run("sweep.trials=6", "hydra.launcher.jobs=2")
    assert sorted(again.jobs) == [4, 5], (
        "under their numbers, so their jobs go on in the same directories"
    )
    assert {trial.number: dict(trial.params) for trial in study.trials} == drawn
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_trials_of_a_live_driver_are_left_to_it(run, tmp_path):
    config = composed("sweep=study", "model=vae")
    space, _ = parse(config, SPACE)
    other = Trials(
        "study", None, {"val/loss": "minimize"}, space, {"sweep": "study", "model": "vae"}, tmp_path
    )
    with other.driving():
        taken = other.take(2, 5, lambda known: optuna.samplers.RandomSampler())
        launcher, study, _ = run("sweep.trials=5", "hydra.launcher.jobs=4")
        assert [trial.number for trial in taken] == [0, 1]
        assert launcher.batches == [[2, 3, 4]], "the total is that of all drivers"
        assert study.trials[0].state == TrialState.RUNNING
    assert run("sweep.trials=5", "hydra.launcher.jobs=4")[0].batches == [[0, 1]], "until it is gone"


def test_as_a_job_ends_the_next_is_asked_for(tmp_path):
    """A long job holds nobody up, and the study knows the others' results for its next trial."""
    launcher, known = Launcher(tmp_path), []
    launcher.at_once = 2

    def run(jobs, ended):
        slow, *rest = available(jobs)
        while rest:
            launcher._work(rest[0])
            ended(rest.pop(0))
            rest += available(jobs)
        known.extend(launcher.jobs)
        launcher._work(slow)
        ended(slow)
        assert available(jobs) == []

    launcher.run = run
    config = composed("sweep=study", "model=vae", f"hydra.sweep.dir={tmp_path}", "sweep.trials=7")
    sweep(config, launcher, ["sweep=study", "model=vae", *SPACE])
    assert known == [1, 2, 3, 4, 5, 6]


def test_two_objectives_have_a_front(run, capsys):
    words = [
        "sweep.trials=12",
        "hydra.launcher.jobs=6",
        "sweep.objectives={a:minimize,b:maximize}",
        "search=nsgaii",
    ]
    measure = {
        "metrics": lambda v: {
            "a": v["optimizer.lr"],
            "b": v["optimizer.lr"] * (v["model.latent_dim"] > 4),
        }
    }
    _, study, _ = run(*words, **measure)
    front = {tuple(trial.values) for trial in study.best_trials}
    values = {tuple(trial.values) for trial in study.trials}
    dominated = {
        one for one in values if any(o != one and o[0] <= one[0] and o[1] >= one[1] for o in values)
    }
    assert front == values - dominated
    assert len(dominated) > 0
    assert capsys.readouterr().out.count("  best  ") == len(study.best_trials)


def test_a_database_serves_as_well(run, tmp_path):
    launcher, study, _ = run(
        "sweep.trials=3",
        "hydra.launcher.jobs=2",
        f"sweep.storage=sqlite:///{tmp_path}/study.db",
        dies=(2,),
    )
    again, _, _ = run("sweep.trials=3", f"sweep.storage=sqlite:///{tmp_path}/study.db")
    assert again.jobs == {2: launcher.jobs[2]}
    assert not (tmp_path / JOURNAL).exists()


def test_a_torn_journal_is_mended(run, tmp_path):
    run("sweep.trials=2")
    with open(tmp_path / JOURNAL, "ab") as journal:
        journal.write(b'{"op_code":5,"worker_id":"x","tri')
    assert list(run("sweep.trials=4")[0].jobs) == [2, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("1,2", CategoricalDistribution(["1", "2"])),
        ("range(2,33,2)", IntDistribution(2, 32, step=2)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("interval(1e-4,1e-2)", FloatDistribution(1e-4, 1e-2)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,9)))", IntDistribution(1, 9, log=True)),
        ("range(5,1,-2)", CategoricalDistribution(["5", "3"])),
    ],
)
def test_hydra_syntax_is_understood(text, expected):
    config = composed("sweep=vae_tpe")
    space, fixed = parse(config, ["sweep=vae_tpe", f"optimizer.lr={text}", "model.latent_dim=7"])
    assert space["optimizer.lr"] == expected
    assert space.keys() == {"optimizer.lr", "beta.value"}, "what is typed wins over the file"
    assert fixed == ["sweep=vae_tpe", "model.latent_dim=7"]


@pytest.mark.parametrize(
    ("words", "space", "message"),
    [
        ([], [], "the search space is empty"),
        (
            [],
            ["optimizer.lrr=1,2"],
            "names a setting that does not exist; did you mean optimizer.lr",
        ),
        ([], ["schedule=linear,cosine"], "names a setting that does not exist"),
        (
            [],
            ["likelihood=gaussian,logistik"],
            "likelihood=logistik, which is no option; did you mean logistic",
        ),
        ([], ["optimizer.lr=interval(1,0)"], r"optimizer.lr=interval\(1,0\): .*must be choice"),
        ([], ["optimizer.lr=tag(log,interval(0,1))"], "log"),
        (["sweep.space.seed=1"], [], "sweep.space.seed=1: must be choice"),
        (["search=grid"], SPACE, "optimizer.lr=.*a grid needs values"),
        (["sweep.trials=0"], SPACE, "sweep.trials=0: must be an integer >= 1"),
        (
            ["sweep.objectives={a:down}"],
            SPACE,
            "sweep.objectives.a=down: must be minimize or maximize",
        ),
        (["search._target_=optuna.samplers.Nope"], SPACE, "search: "),
        (["+search.nope=1"], SPACE, "search: .*nope"),
        (["sweep.storage=nosuch://x"], SPACE, "sweep.storage=nosuch://x: "),
        (
            ["sweep.storage='postgresql://me:hidden@host/db'"],
            SPACE,
            r"=postgresql://\.\.\.: holds a password",
        ),
        (
            ["sweep.pruner={_target_:optuna.pruners.NopPruner}", "sweep.objectives={a:minimize}"],
            SPACE,
            "pruning needs",
        ),
        (["sweep.pruner={_target_:optuna.pruners.NopPruner}"], SPACE, "the jobs need the callback"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_job(run, words, space, message, tmp_path):
    words = [f"+{word}" if word.startswith("sweep.space") else word for word in words]
    with pytest.raises(ConfigError, match=message):
        run(*words, space=space)
    assert not list(tmp_path.glob("*-vae-*"))


def test_a_study_is_not_reopened_for_something_else(run, tmp_path):
    run("sweep.trials=1")
    with pytest.raises(ConfigError) as refusal:
        run("sweep.trials=2", space=("optimizer.lr=interval(0.1,2)", "beta.value=1,2"))
    for part in (
        "low=0.1, high=1.0 there, low=0.1, high=2.0 here",
        "model.latent_dim: ",
        "beta.value: nothing there",
    ):
        assert part in str(refusal.value)
    with pytest.raises(ConfigError, match="seed: nothing there, 7 here"):
        run("sweep.trials=2", "seed=7")
    with pytest.raises(ConfigError, match="val/loss: minimize there, maximize here"):
        run("sweep.trials=2", "sweep.objectives={val/loss:maximize}")
    assert list(run("sweep.trials=2")[0].jobs) == [1], "the study itself is as it was"


def test_a_directory_that_cannot_be_made_is_named():
    with pytest.raises(StorageError, match="hydra.sweep.dir=/proc/nowhere"):
        open_storage(None, Path("/proc/nowhere"))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_composes_with_its_space(name):
    config = composed(f"sweep={name}")
    typed = ["optimizer.lr=1,2"] if name == "study" else []
    space, _ = parse(config, [f"sweep={name}", *typed])
    assert space
    assert config.sweep.study == name
    assert (config.sweep.pruner is not None) == ("pruning" in config.callback)


def test_a_sweep_without_multirun_is_not_trained(cli):
    done = cli("train", "sweep=vae_tpe", "callback.generation=null", "logger=csv")
    assert done.code == 2
    assert "add --multirun" in done.err
