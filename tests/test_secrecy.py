"""Values of secret variables reach no file; the command line takes no secrets."""

import json
import logging
import sys
from urllib.parse import quote

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.output import Patient, Plain
from src.config.secrecy import masked, refuse_composed, refuse_recorded, refuse_secrets
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


CREDENTIALS = [
    ("https://user:hunter2hunter@host/x-{000..146}.tar", r"holds a password, .*~/\.netrc"),
    ("http://hunter2hunter@host/x.tar", r"holds a login, .*~/\.netrc"),
    ("https://me@example.org:hunter2hunter@host/x.tar", "holds a"),
    ("https://host/x.tar?X-Amz-Signature=hunter2hunter&b=1", "holds 'X-Amz-Signature' in a URL"),
    ("https://host/x.tar?a=1;access_token=hunter2hunter", "holds 'access_token' in a URL"),
    ("https://host/x.tar#sig=hunter2hunter", "holds 'sig' in a URL"),
    ("https://host/x.tar?pass%77ord=hunter2hunter", "holds 'password' in a URL"),
    ("s3://me:hunter2hunter@bucket/x.tar", "AWS_ACCESS_KEY_ID"),
    ("postgresql://me:hunter/2hunter@host/db", r"holds a password, .*~/\.pgpass"),
    ("postgresql+psycopg2://me:80/hunter2hunter@host/db", "holds a password"),
    ("postgresql://host/db?user=me&password=hunter2hunter", "holds 'password' in a URL"),
    ("mysql://host/db?passwd=hunter2hunter", "read_default_file"),
    ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2hunter", "holds 'PWD'"),
]


@pytest.mark.parametrize(("url", "message"), CREDENTIALS)
def test_a_url_with_credentials_is_refused_wherever_it_stands(url, message):
    for refuse in (
        lambda: refuse_secrets([f"dataset.root={url}"]),
        lambda: refuse_secrets(["--multirun", f"+note=a,{url}"]),
        lambda: refuse_recorded({"dataset": {"root": url}}),
        lambda: refuse_recorded({"a": [1, {"b": [url]}]}),
        lambda: refuse_recorded({"a": {url: 1}}),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            refuse()
        assert "hunter" not in str(caught.value)
        assert "\n" not in str(caught.value)
    if "%" not in url:
        assert "hunter2" not in masked(f"cannot read '{url}' at all")


@pytest.mark.parametrize(
    "url",
    [
        "https://host:8080/a@b.tar",
        "https://[::1]:80/a@b",
        "https://host/a:b@c?design=1&tokens=3&key=",
        "sqlite:///study.db",
        "postgresql://me@host/db",
        "mysql://me@host/db?read_default_file=/home/me/.my.cnf",
        "s3://bucket/x@2.tar",
        "user:pass@host",
    ],
)
def test_a_url_without_credentials_passes(url):
    refuse_secrets([f"dataset.root={url}"])
    refuse_recorded({"dataset": {"root": url}})
    assert masked(f"from {url}") == f"from {url}"


@pytest.mark.parametrize("secret", ["/abcDEF+123456789", "/etc/no-such-file/x", "~/abcdefg"])
def test_a_secret_may_begin_as_a_path(monkeypatch, secret):
    monkeypatch.setenv("MY_TOKEN", secret)
    with pytest.raises(ConfigError, match=r"note=\.\.\.: holds the value of \$MY_TOKEN"):
        refuse_secrets([f"+note={secret}"])
    with pytest.raises(ConfigError, match=r"a\.note=\.\.\.: holds the value of \$MY_TOKEN"):
        refuse_recorded({"a": {"note": f"x{secret}"}})
    assert masked(f"a {secret} b") == "a *** b"


def test_the_place_of_a_key_is_no_secret(monkeypatch, tmp_path):
    (tmp_path / "key.pem").write_text("x")
    monkeypatch.setenv("SSL_KEY", str(tmp_path / "key.pem"))
    monkeypatch.setenv("GENBENCH_KEY_FILE", "/home/me/not-made-yet")
    refuse_secrets([f"+a={tmp_path}/key.pem", "+b=/home/me/not-made-yet"])
    assert masked(f"{tmp_path}/key.pem") == f"{tmp_path}/key.pem"


def test_a_weak_secret_does_not_forbid_our_own_words(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "generation")
    refuse_recorded({"callback": {"_target_": "src.callback.generation.Generation"}})
    with pytest.raises(ConfigError, match="MY_PASSWORD"):
        refuse_recorded({"note": "generation"})


@pytest.mark.parametrize("text", ['it\'s "quoted" 123', "with\\back 123", "a/b+c d=e&123"])
def test_escaped_forms_are_masked_and_refused(monkeypatch, text):
    monkeypatch.setenv("MY_SECRET", text)
    for form in (text, quote(text, safe=""), quote(text), json.dumps(text), repr(text)):
        assert text[-6:] not in masked(f"<{form}>")
        with pytest.raises(ConfigError, match="MY_SECRET"):
            refuse_recorded({"note": form})


def test_references_are_followed():
    parts = {"login": "me:hunter2hunter", "root": "postgresql://${login}@host/db"}
    with pytest.raises(ConfigError, match="root=...: holds a password"):
        refuse_composed(OmegaConf.create(parts))
    refuse_composed(OmegaConf.create({"a": "???", "b": "${nowhere}"}))


FILES = {
    "of-a-variable": ("note: canary-0123456789", "note=...: holds the value of $MY_API_KEY"),
    "key-of-a-node": ("note: {canary-abcdefghij: 1}", "holds the value of $HF_TOKEN"),
    "named": ("logger: {wandb: {api_key: abc}}", "'api_key' looks like a secret"),
    "url": ("dataset: {root: 'https://u:canary@h/x'}", "dataset.root=...: holds a password"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user_are_looked_at(cli, small, secrets, tmp_path, name):
    text, message = FILES[name]
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    done = cli("train", "--config-dir=own", *small, "experiment=mine", "hydra.run.dir=run")
    assert done.code == 2, done
    assert message in done.err
    assert done.err.count("\n") == 1
    assert "canary" not in done.out + done.err
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_printed_lines_are_masked(secrets, monkeypatch, tmp_path, capsys):
    out = Patient(sys.stdout)
    out.write("key canary-0123456789, https://u:canary@h/x\n")
    print("and canary%2B%2F%3Dzyxwvuts", file=out)
    handler = logging.FileHandler(tmp_path / "train.log")
    handler.setFormatter(Plain("%(message)s"))
    try:
        raise ValueError("canary-abcdefghij")
    except ValueError:
        error = sys.exc_info()
    handler.emit(logging.makeLogRecord({"msg": "canary-0123456789", "exc_info": error}))
    handler.close()
    printed = capsys.readouterr().out + (tmp_path / "train.log").read_text()
    assert "canary" not in printed
    assert printed.count("***") >= 5


def test_errors_are_masked(cli, secrets, monkeypatch):
    def fail(cfg):
        raise RuntimeError("server says canary-0123456789 is wrong")

    monkeypatch.setattr("src.train.train", fail)
    done = cli("train")
    assert done.code == 1
    assert "server says *** is wrong" in done.err
    assert "canary" not in done.out + done.err
