"""Settings that nothing reads and files that are no YAML, wherever they lie."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from support import CONF, names

from src.config.origin import keep_sources
from src.config.signature import parameters_of
from src.config.unread import check_read
from src.errors import ConfigError

GLOBAL = "# @package _global_\n"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Compose with a directory of one's own, as the command line would, and check."""
    monkeypatch.chdir(tmp_path)
    keep_sources()

    def run(*words, name="train"):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check_read(compose(name, [f"hydra.searchpath=[file://{tmp_path}]", *words]), words)

    yield run
    GlobalHydra.instance().clear()


@pytest.fixture
def write(tmp_path):
    """Write a file of the directory of one's own."""

    def make(name, content):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


OPTIONS = [
    *(f"model={name}" for name in names("model")),
    *(f"experiment={name}" for name in names("experiment")),
    *(f"trainer={name}" for name in names("trainer")),
    *(f"dataset={name}" for name in names("dataset")),
    *(f"launcher={name}" for name in names("launcher")),
    *(f"sweep={name}" for name in names("sweep")),
    *(f"metric={name}" for name in names("metric")),
    *(f"callback=[{name}]" for name in names("callback")),
]


@pytest.mark.parametrize("word", OPTIONS)
def test_every_option_is_read(check, word):
    check(word)


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_the_other_entry_points_are_read(check, name):
    check("trainer=debug" if name == "none" else "trainer=cpu", name=name)


READ = [
    ("+optimizer.maximize=true",),
    ("+trainer.gradient_clip_algorithm=norm",),
    ("+logger.wandb.tags=[a]",),
    ("+callback.mine={_target_:mine.Mine,a:1}",),
    ("+metric.measures.mine._target_=mine.Mine",),
    ("callback=[]", "trainer=debug", "callback.preflight=null"),
    ("callback.generation=null", "features=pixels"),
    ("+mine.a=1", "model.shape='${mine.a}'"),
    ("note=hello",),
    ("~dataset.flip",),
]


@pytest.mark.parametrize("words", READ)
def test_what_is_read_passes(check, words):
    check(*words)


UNREAD = [
    ("optimzer: {lr: 3}", "optimzer: there is no setting 'optimzer'; did you mean optimizer?"),
    ("optimizer: {lrr: 3}", "optimizer.lrr: .*; did you mean optimizer.lr?"),
    ("seeds: 3", "seeds: there is no setting 'seeds'; did you mean seed?"),
    ("dataset: {batch_size: 8}", "dataset.batch_size: .*did you mean dataset.global_batch_size?"),
    ("dataset: {seed: 8}", "dataset.seed: there is no setting"),
    ("dataset: {load: {rot: x}}", "dataset.load.rot: .*; did you mean dataset.load.root"),
    ("sampler: {num_steps: 3}", "sampler: nothing in this configuration uses the group 'sampler'"),
    ("experiment: {seed: 3}", "experiment: nothing in this configuration uses the group"),
    ("callback: {generaton: {every: 1}}", "did you mean callback.generation?"),
    ("callback: {generaton: null}", "did you mean callback.generation?"),
    ("callback: {generation: {ever: 1}}", "did you mean callback.generation.every?"),
    ("metric: {measures: {kd: {max_images: 3}}}", "did you mean metric.measures.kid?"),
    ("network: {encodr: {norm: x}}", "did you mean network.encoder?"),
    ("network: {encoder: {nrm: x}}", "did you mean network.encoder.norm?"),
    ("trainer: {max_step: 3}", "did you mean trainer.max_steps?"),
    ("sweep: {trials: 3}", "sweep: nothing in this configuration uses the group 'sweep'"),
    ("optimizer:", "optimizer=null: must be settings, each as name: value"),
    ("model: 3", "model=3: must be settings"),
]


@pytest.mark.parametrize(("content", "message"), UNREAD)
def test_what_nothing_reads_is_refused_with_its_file(check, write, content, message):
    write("experiment/mine", f"{GLOBAL}defaults: [override /model: vae]\n{content}\n")
    with pytest.raises(ConfigError, match=f"^experiment/mine.yaml: .*{message}"):
        check("experiment=mine")


TYPED = [
    ("+batch_size=8", r"^\+batch_size=8: .*did you mean dataset.global_batch_size"),
    ("++dataset.batch_size=8", "did you mean dataset.global_batch_size?"),
    ("+dataset={batch_size:8}", "^.+dataset={batch_size:8}: there is no setting"),
    ("+trainer.max_step=3", "did you mean trainer.max_steps?"),
    ("+model.latent.dim=3", "there is no setting 'model.latent'"),
]


@pytest.mark.parametrize(("word", "message"), TYPED)
def test_what_nothing_reads_is_refused_where_it_is_typed(check, word, message):
    with pytest.raises(ConfigError, match=message):
        check(word)


MISPLACED = [
    ("experiment", "seed: 3\n", "sets 'experiment': the first line must be '# @package _global_'"),
    ("experiment", f"# mine\n{GLOBAL}seed: 3\n", "sets 'experiment': the first line must be"),
    ("experiment", "# @package _globl_\nseed: 3\n", "sets '_globl_': the first line must be"),
    ("experiment", "hello\n", "sets 'experiment': the first line must be"),
    (
        "launcher",
        "jobs: 3\n",
        "sets 'launcher': the first line must be '# @package hydra.launcher'",
    ),
    ("sweep", "defaults: [study]\nsweep: {trials: 3}\n", "sets 'sweep': the first line must be"),
]


@pytest.mark.parametrize(("group", "content", "message"), MISPLACED)
def test_a_file_that_sets_another_node_is_refused(check, write, group, content, message):
    write(f"{group}/mine", content)
    with pytest.raises(ConfigError, match=f"^{group}/mine.yaml: {message}"):
        check(f"{group}=mine")


def test_options_of_ones_own_are_checked(check, write):
    write("sweep/mine", f"{GLOBAL}defaults: [study, _self_]\nsweep: {{trails: 3}}\n")
    with pytest.raises(ConfigError, match="^sweep/mine.yaml: .*; did you mean sweep.trials"):
        check("sweep=mine")
    write("dataset/mine", "defaults: [digits]\nbatch_size: 3\n")
    with pytest.raises(ConfigError, match="^dataset/mine.yaml: dataset.batch_size: "):
        check("dataset=mine")
    content = (
        "defaults: [digits]\nload: {extra: '${dataset.extra}', _target_: mine.load}\nextra: 3\n"
    )
    write("dataset/mine", content)
    check("dataset=mine")


SLIPS = [
    (f"{GLOBAL}trainer:\n\tmax_steps: 2\n", ":3: a tab; indent with spaces"),
    (f"{GLOBAL}seed: 1\nseed: 2\n", ":3: seed is set twice"),
    (f"{GLOBAL}optimizer: {{lr: 1\nseed: 2\n", ":2: a bracket that is not closed"),
    (f"{GLOBAL}x: [1, 2\n", ":2: a bracket that is not closed"),
    (f"{GLOBAL}seed: 'a\n", ":2: a quote or bracket that is not closed"),
    (f"{GLOBAL}a: b: c\n", ":2: a second colon, or a wrong indentation"),
    (f"{GLOBAL}a: 1\n  b: 2\n", ":3: a second colon, or a wrong indentation"),
    (f"{GLOBAL}# caf\n".encode() + b"\xe9\n", ":3: byte 0xe9 is no UTF-8; save the file as UTF-8"),
    (b"\xff\xfea\x00", ":1: byte 0xff is no UTF-8"),
    (f"\ufeff{GLOBAL}seed: 3\n", ":1: begins with a byte order mark"),
    (f"{GLOBAL}seed: 1\x00\n", ": unacceptable character #x0000"),
    (f"{GLOBAL}- a\n- b\n", ": must be settings"),
    (f"{GLOBAL}seed: 1\n---\nseed: 2\n", ":3: a second document"),
    (f"{GLOBAL}seed: *x\n", ":2: an alias"),
    (f"{GLOBAL}a: &x [*x]\n", ": is nested too deep, or refers to itself"),
    (f"{GLOBAL}? [a]\n: 1\n", ":2: a list or a mapping as a name"),
    (f"{GLOBAL}seed: !!python/name:os.system\n", ":2: could not determine a constructor"),
    (f"{GLOBAL}a: ${{b\n", ": a: no viable alternative"),
    (f"{GLOBAL}defaults: {{model: vae}}\n", ": Invalid defaults list"),
    ("# @package\nseed: 1\n", ": Expected header format"),
]


@pytest.mark.parametrize(("content", "message"), SLIPS)
def test_slips_of_yaml_are_named(check, write, content, message):
    write("experiment/mine", content)
    with pytest.raises(ConfigError) as caught:
        check("experiment=mine")
    assert str(caught.value).startswith(f"experiment/mine.yaml{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x: [1\n", "error: own/experiment/mine.yaml:1: a bracket"),
        (f"{GLOBAL}optimzer: {{}}\n", "error: own/experiment/mine.yaml: optimzer: there is no"),
        (f"{GLOBAL}defaults: [override /mdel: vae]\n", "error: In 'experiment/mine': Could not"),
        (f"{GLOBAL}defaults: [model: vae]\n", "error: In 'experiment/mine': Could not find"),
    ],
)
@pytest.mark.parametrize("option", ["-cd", "--config-dir"])
def test_the_command_line_says_one_line(cli, tmp_path, content, message, option):
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    done = cli("train", "experiment=mine", option, "own", "seed=1", "hydra.run.dir=run")
    assert done.code == 2, done
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1
    assert not Path(tmp_path, "run").exists()


def test_a_multirun_is_refused_before_its_jobs(cli, tmp_path):
    done = cli("train", "+batch_size=8", "-m", "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 2, done
    assert done.err.startswith("error: +batch_size=8: there is no setting 'batch_size'")
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_of_ones_own_is_checked(cli, tmp_path):
    file = tmp_path / "launcher" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package hydra.launcher\ndefaults: [local]\njbs: 2\n")
    words = ("hydra.sweep.dir=sweep", "launcher=mine", "seed=1,2", "--config-dir=.")
    done = cli("train", "--multirun", *words)
    assert done.code == 2, done
    wanted = "launcher.jbs: there is no setting 'launcher.jbs'; did you mean launcher.jobs?"
    assert done.err == f"error: launcher/mine.yaml: {wanted}\n"


def test_signatures_are_read_from_sources():
    assert parameters_of("src.beta.Constant") == ["value"]
    assert "fused" in parameters_of("torch.optim.AdamW")
    assert "max_steps" in parameters_of("pytorch_lightning.Trainer")
    for target in ("nowhere.Nothing", "src.beta.Nothing", "int", "src.logger.wandb_logger.none"):
        assert parameters_of(target) is None
