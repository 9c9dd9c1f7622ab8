"""Values of secret variables reach no file; the command line takes no secrets."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.secrecy import refuse_secrets
from src.errors import ConfigError

SECRETS = {
    "MY_API_KEY": "canary-0123456789",
    "HF_TOKEN": "canary-abcdefghij",
    "DB_PASSWORD": "canary+/=zyxwvuts",
    "WANDB_API_KEY": "ca4a12" + "0f" * 17,
}


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def test_no_file_of_a_run_holds_a_secret(cli, small, secrets, tmp_path):
    words = [word for word in small if word != "logger=csv"] + ["logger=[csv,wandb]", "model=vae"]
    words += ["callback.generation=null", "callback.grid=null", "+note=in-the-open"]
    done = cli("train", *words, "hydra.run.dir=run")
    assert done.code == 0, done
    contents = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    seen = {path.suffix for path, content in contents.items() if b"in-the-open" in content}
    assert {".yaml", ".ckpt", ".wandb"} <= seen, (
        "a value that is no secret is found where values are recorded"
    )
    for value in SECRETS.values():
        assert value not in done.out + done.err
        assert [path for path, content in contents.items() if value.encode() in content] == []


REFUSED = [
    ("+api_key=x", "'api_key' looks like a secret"),
    ("logger.wandb.token=x", "'token' looks like a secret"),
    ("++logger.wandb.settings.hf_token=x", "'hf_token' looks like a secret"),
    ("+logger.wandb.settings={entity: me, api_key: x}", "'api_key' looks like a secret"),
    ("hydra.job.env_set.GITHUB_TOKEN=x", "'GITHUB_TOKEN' looks like a secret"),
    ("+password=x", "'password' looks like a secret"),
    ("+note=canary-0123456789", r"\+note=\.\.\.: holds the value of \$MY_API_KEY"),
    ("logger.wandb.entity=user:canary-abcdefghij@host", r"holds the value of \$HF_TOKEN"),
    ("dataset.root=canary+/=zyxwvuts", r"holds the value of \$DB_PASSWORD"),
    ("+canary-0123456789=x", r"\+\.\.\.=\.\.\.: holds the value"),
]


@pytest.mark.parametrize(("word", "message"), REFUSED)
def test_overrides_hold_no_secrets(secrets, word, message):
    with pytest.raises(ConfigError, match=message) as caught:
        refuse_secrets(["model=vae", word])
    assert "canary" not in str(caught.value)
    assert "=x" not in str(caught.value)


def test_other_settings_pass(secrets, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("KEY_DIRECTORY", "/data/sets")
    refuse_secrets(
        [
            "trainer.deterministic=false",
            "dataset.root=/data/sets/mnist",
            "dataset.root=/a/token=5",
            "sampler=ddim",
        ]
        + [
            "+tokens=7",
            "+num_tokens=7",
            "+monkey=1",
            "+bypass=1",
            "optimizer.lr=0.1",
            "--multirun",
            "ckpt_path=key=3",
        ]
    )


@pytest.mark.parametrize("entry", ["train", "sample", "evaluate"])
def test_every_command_refuses_them(cli, secrets, tmp_path, entry):
    done = cli(entry, "features.api_key=abc", "ckpt_path=x")
    assert done.code == 2, done
    assert done.err.startswith("error: features.api_key=...: 'api_key' looks like a secret")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", ["${oc.env:MY_API_KEY}", "a-${oc.env:HF_TOKEN,x}", "${oc.decode:${oc.env:MY_API_KEY}}"]
)
def test_the_configuration_cannot_fetch_a_secret(cli, small, secrets, tmp_path, value):
    done = cli("train", *small, f"+note='{value}'", "hydra.run.dir=run")
    assert done.code == 2, done
    assert "looks like a secret, and configurations are recorded; full_key: note" in done.err
    assert "canary" not in done.out + done.err
    assert list(tmp_path.iterdir()) == []


def test_other_variables_can_be_fetched(monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    cfg = OmegaConf.create(
        {"a": "${oc.env:DATA_ROOT}", "b": "${oc.env:NOWHERE,7}", "c": "${oc.env:NOWHERE,null}"}
    )
    assert OmegaConf.to_container(cfg, resolve=True) == {"a": "/data", "b": "7", "c": None}
    with pytest.raises(OmegaConfBaseException, match="'NOWHERE' not found"):
        _ = OmegaConf.create({"a": "${oc.env:NOWHERE}"}).a
