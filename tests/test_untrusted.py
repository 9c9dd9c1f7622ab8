"""Hostile configurations are refused: nothing that they name is built, imported or called."""

import copy
import re
import sys

import pytest
import torch
from conftest import CONF, ROOT, options
from omegaconf import OmegaConf

from src.comparison.runs import read_run
from src.config.build import build
from src.config.untrusted import BUILT, MAX_NODES, MAX_TEXT, check_config, plain_yaml
from src.errors import ConfigError, DataError

EVIL = "evil_module_of_a_test"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """``EVIL`` is importable, but nobody imports it."""
    (tmp_path / f"{EVIL}.py").write_text("def run(*args, **settings): pass")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert EVIL not in sys.modules


@pytest.fixture(scope="module")
def written(request):
    """The resolved configuration of a run."""
    from hydra import compose, initialize_config_dir

    words = ["model=vae", "features=pixels", "run_dir=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", words), resolve=True)
    return config | {"provenance": {"overrides": ["a=${oc.env:HOME}"]}}


@pytest.fixture
def config(written):
    return copy.deepcopy(written)


def test_what_a_run_writes_is_taken(config):
    check_config(config)
    config |= {"odd": ["12:30", "on", "2020-01-01", "*a", "&a", "1e3", "~", "é", "a: b", 1.5, None]}
    assert plain_yaml(OmegaConf.to_yaml(OmegaConf.create(config))) == config


@pytest.mark.parametrize("group", ["model", "sampler", "features", "metric", "dataset"])
def test_every_option_of_the_project_may_stand_in_a_checkpoint(composed, group):
    for option in options(group):
        words = [f"{group}={option}", *(["dataset.root=x"] if group == "dataset" else [])]
        check_config(OmegaConf.to_container(composed(*words), resolve=True))


def test_every_part_of_a_model_may_stand_in_a_checkpoint(config):
    for package in BUILT["model"] - {"model", "sampler"}:
        for path in (CONF / package).glob("*.yaml"):
            for target in re.findall(r"_target_: (\S+)", path.read_text()):
                config["model"]["beta"] = {"_target_": target}
                check_config(config)


TARGETS = {  # by the node of the configuration that they stand in
    "model": [
        *(
            "torchmetrics.image.fid.FrechetInceptionDistance",
            "os.system",
            "torch.load",
            "torch.hub.load",
            "builtins.eval",
            f"{EVIL}.run",
            f"src.model.{EVIL}.run",
        ),
        *("src.files.os.system", "torch.nn.modules.linear.torch.load", "src.model.vae.torch.load"),
        *(
            "src.files.write_text",
            "src.features.clip.CLIP",
            "src.dataset.mnist.load",
            "src.evaluation.card.Card",
        ),
        *(
            "src.model.vae.VAE.loss",
            "src.network.layers.nn.Linear",
            "src.network.unet._Block",
            "src.beta.require",
        ),
        *(
            "src.sampler.base.steps",
            "src.model",
            "src.model..vae.VAE",
            "src.model.vae.VAE\n",
            "",
            7,
            None,
            ["a"],
        ),
    ],
    "sampler": ["torch.load", "src.sampler.ddim.randn", "src.dataset.mnist.load", f"{EVIL}.run"],
    "features": [
        *(
            "src.features.pretrained._find",
            "src.features.classifier._save",
            "src.features.clip.torch.jit.load",
        ),
        *("torch.hub.load_state_dict_from_url", "src.model.vae.VAE", f"{EVIL}.run"),
    ],
    "metric": [
        "os.system",
        "src.metric.fid.torch.save",
        "src.metric.fid.covariance_part",
        f"{EVIL}.run",
        *(
            "torchmetrics.Metric",
            "torchmetrics.aggregation.MeanMetric",
            "torchmetrics.image.fid.torch.load",
            "torchmetrics.image.fid.NoTrainInceptionV3",
            "torchmetrics.image.fid.Metric",
            "torchmetrics.image.fid._compute_fid",
            "torchmetrics.image.kid.poly_mmd",
            "torchmetrics.image.mifid.FrechetInceptionDistance",
            "torchmetrics.image.fid.os.FrechetInceptionDistance",
            "torchmetrics.image.FrechetInceptionDistance\n",
            "torchmetrics.functional.image.lpips._LPIPS",
            "torchmetrics.functional.image.psnr.peak_signal_noise_ratio",
            "torchmetrics.utilities.imports.importlib.import_module",
            "torchmetrics.text.BERTScore",
            f"torchmetrics.image.{EVIL}.Run",
        ),
    ],
    "dataset": ["shutil.rmtree", "src.dataset.torchvision_sets._download", f"{EVIL}.run"],
}


@pytest.mark.parametrize(
    ("group", "target"), [(group, target) for group in TARGETS for target in TARGETS[group]]
)
def test_nothing_but_parts_of_the_project_is_built(config, evil, group, target):
    node = {"_target_": target, "f": "x", "weights_only": False}
    for partial in ({}, {"_partial_": True}):
        config.setdefault(group, {})["deep"] = [[{"deeper": node | partial}]]
        with pytest.raises(ValueError, match="wants to build") as caught:
            check_config(config)
        assert "\n" not in str(caught.value)


def test_the_sampler_of_a_run_without_one_is_looked_at_as_well(config):
    """A copy of it becomes ``model.sampler``."""
    config["sampler"] = {"_target_": "torch.load", "_partial_": True}
    with pytest.raises(ValueError, match="wants to build 'torch.load'"):
        check_config(config)


@pytest.mark.parametrize("module", ["image", "image.kid"])
def test_a_metric_of_torchmetrics_may_stand_in_a_checkpoint_to_be_called_later(config, module):
    node = {"_target_": f"torchmetrics.{module}.KernelInceptionDistance", "_partial_": True}
    adapter = {"_target_": "src.metric.torchmetric.TorchMetric", "name": "a", "metric": node}
    config["metric"] = {"measures": {"a": adapter}}
    check_config(config)
    del node["_partial_"]
    with pytest.raises(ValueError, match=r"KernelInceptionDistance' built with \{\}"):
        check_config(config)


@pytest.mark.parametrize("name", ["fid.FrechetInceptionDistance", "kid.KernelInceptionDistance"])
def test_a_metric_in_a_checkpoint_starts_no_download(config, name, monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", pytest.fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", pytest.fail)
    node = {"_target_": f"torchmetrics.image.{name}", "_partial_": True, "feature": 2048}
    adapter = {"_target_": "src.metric.torchmetric.TorchMetric", "name": "a", "metric": node}
    config["metric"] = {"_target_": "src.metric.generation.GenerationMetrics"}
    config["metric"]["measures"] = {"a": adapter}
    check_config(config)
    with pytest.raises(ConfigError, match="metric.measures.a.metric.feature=2048: must be left"):
        build(OmegaConf.create(config), "metric")


@pytest.mark.parametrize(
    "how",
    [
        {"_args_": [1]},
        {"_recursive_": False},
        {"_convert_": "none"},
        {"_partial_": True},
        {"_partial_": "x"},
    ],
)
def test_a_part_is_built_in_no_other_way(config, how):
    config["model"]["beta"] |= how
    with pytest.raises(ValueError, match=r"wants 'src.beta.Constant' built with \{'_"):
        check_config(config)


def test_a_function_that_is_handed_over_is_never_called_instead(config):
    del config["dataset"]["load"]["_partial_"]
    with pytest.raises(ValueError, match=r"wants 'src.dataset.digits.load' built with \{\}"):
        check_config(config)


def circle():
    part = []
    part.append(part)
    return part


def doubling(part, levels):
    for _ in range(levels):
        part = [part, part]
    return part


def nested(part, levels):
    for _ in range(levels):
        part = {"a": part}
    return part


CHANGES = {
    "environment": ({"note": "${oc.env:HOME}"}, "unresolved value"),
    "text around a reference": ({"cache_dir": "${seed}/x"}, "unresolved value"),
    "reference to nothing": ({"cache_dir": "${nothing}"}, r"refers to \${nothing}, which is not"),
    "missing": ({"cache_dir": "???"}, "unresolved value"),
    "bytes": ({"note": b"x"}, "holds b'x', which is no plain value"),
    "tensor": ({"note": torch.ones(2)}, "no plain value"),
    "tuple": ({"note": (1, 2)}, "no plain value"),
    "name": ({("a", "b"): 1}, "no plain value"),
    "deep": ({"note": nested(1, 40)}, "levels"),
    "deepest": ({"note": nested(1, 100_000)}, "levels"),
    "many": ({"note": [0] * (MAX_NODES + 1)}, f"more than {MAX_NODES} values"),
    "long": ({"note": "x" * MAX_TEXT}, "characters"),
    "circle": ({"note": circle()}, "levels"),
    "doubling": ({"note": doubling(1, 25)}, "holds more than"),
    "wide doubling": ({"note": doubling([0] * 50_000, 20)}, "holds more than"),
    "no model": ({"model": 7}, "describes no model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_is_plain_and_of_a_sane_size(written, name):
    change, message = CHANGES[name]
    with pytest.raises(ValueError, match=message) as caught:
        check_config(written | change)
    assert len(str(caught.value)) < 300


YAML = {
    "laughs": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "refers to another part"),
    "merges": ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "refers to another part"),
    "circle": ("model: &a [*a]", "refers to another part"),
    "deep": ("{a: " * 200 + "}" * 200, "levels"),
    "deepest": ("[" * 100_000, "levels"),
    "long": ("a: " + "x" * MAX_TEXT, "characters"),
    "object": (f"a: !!python/object/apply:{EVIL}.run []", "could not determine a constructor"),
    "date": ("a: 2020-01-01", "no plain value"),
    "number": ("a: " + "9" * 5000, "limit"),
    "several": ("a: 1\n---\nb: 2", "single document"),
}


@pytest.mark.parametrize("name", YAML)
def test_the_configuration_in_a_run_directory_is_read_as_data(tmp_path, evil, name):
    text, message = YAML[name]
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=f"config.yaml: damaged .*{message}") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_json_that_is_too_deep_is_damaged(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}")
    (tmp_path / "metrics.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="metrics.json: damaged"):
        read_run(tmp_path)


FORBIDDEN = {  # and where it may stand all the same
    r"weights_only\s*=\s*False|allow_pickle\s*=\s*True": set(),
    r"\btorch\.load\(": {
        "rundir/checkpoint.py",
        "features/pretrained.py",
        "features/classifier.py",
    },
    r"load_from_checkpoint|load_state_dict_from_url|torch\.hub\.load\b": set(),
    r"\bnp\.load\((?!.*allow_pickle=False)": set(),
    r"yaml\.(unsafe_|full_)?load\(|pickle\.loads?\(|(?<!\.)\b(eval|exec)\("
    r"|os\.system|shell=True": set(),
    r"extractall|extract_archive|unpack_archive": set(),
    r"\bjit\.load\(": {"features/clip.py"},
    r"safe_globals": set(),
}


def test_nothing_unsafe_is_called():
    for path in (ROOT / "src").rglob("*.py"):
        text, name = path.read_text(), path.relative_to(ROOT / "src").as_posix()
        for pattern, allowed in FORBIDDEN.items():
            assert (name in allowed) == bool(re.search(pattern, text)), f"{name}: {pattern}"
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, f"{name}: {call}"
