"""A named run is the base: its configuration in the place of ``conf/train.yaml``.

``init_from=RUN optimizer.lr=1e-4``: nothing is typed but the change. Hydra gets the run's
configuration as the primary one, each of its groups as an option that another one can replace:
``sampler=heun``, ``+x``, ``--cfg job`` and ``--multirun`` work on it as on conf's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.config_store import ConfigStore

from src.config.ownership import is_own, without_places
from src.config.references import CONF, NOWHERE, at, with_references
from src.config.threads import choose_threads
from src.config.untrusted import check_built, check_config, plain_yaml
from src.config.words import OF_RUN, name_of_choice
from src.errors import CheckpointError, first_line
from src.files import read_regular
from src.foreign import shown

TRUSTED = "trusted_packages"  # by who types it, never by a run
WHOLE = ("model", "experiment", "sweep")  # typed, they describe a run by themselves
# what describes this machine and this start is never taken from the run of another directory
OF_START = {"hydra", "launcher", "logger", "cache_dir", "run_dir", "ckpt_path", "init_from"}
OF_START |= {"resume", "grace_seconds", "provenance", "sweep", "experiment", TRUSTED}
NEVER = {"hydra", "defaults", "provenance", TRUSTED}  # what acts, or is this command line's
OF_MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "default_root_dir")
OF_TRAINING = {"trainer", "callback", "optimizer", "lr_schedule", "metric"}  # not of its outcome
LEFT_OUT = {"evaluate": OF_TRAINING, "sample": {*OF_TRAINING, "features"}}
STARTS = {"ckpt_path", "init_from"}
NEEDED = ("model", "dataset", "trainer")  # nodes of every run
OBJECTS = ("model", "features")
MAX_CONFIG = 2**20  # bytes of a config.yaml


# path, setting, trusted packages -> configuration
Inside = Callable[[Path, str, Collection[str]], dict[str, Any]]


class Named(NamedTuple):
    """A run that the command line names.

    Arguments:
        path: directory or checkpoint.
        setting: by which it is named.
        own: whether it is a directory to go on in.
        devices: that are typed; 0 where none are, or where their number is not.
    """

    path: Path
    setting: str
    own: bool
    devices: int


def named_run(words: list[str]) -> Named | None:
    """The run that is the base of these words; None where there is none, or they say it all.

    What is named and not there is left to whoever reads its weights.
    """
    typed = dict(_pair(word) for word in words if "=" in word)
    if any(group in typed for group in WHOLE):
        return None
    number = typed.get("trainer.devices", "")
    devices = int(number) if re.fullmatch(r"\d{1,4}", number) else 0
    if typed.get("resume") == "auto" and "hydra.run.dir" in typed:
        directory = Path(os.path.expanduser(typed["hydra.run.dir"]))
        if os.path.lexists(_recorded(directory)):
            return Named(directory, "hydra.run.dir", True, devices)
    for setting in ("ckpt_path", "init_from"):
        path = Path(os.path.expanduser(typed.get(setting) or "nowhere given"))
        is_run = os.path.lexists(_recorded(path)) or os.path.isdir(path / "checkpoints")
        if os.path.isfile(path) or is_run:
            return Named(path, setting, False, devices)
    return None


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    quoted = re.fullmatch(r"(['\"])(.*)\1", value)
    return key.lstrip("+"), quoted[2] if quoted else value


def _recorded(path: Path) -> Path:
    """Where the configuration of a run lies, by its directory or one of its checkpoints."""
    if os.path.isdir(path):
        return path / "config.yaml"
    return path.resolve().parent.parent / "config.yaml"


def config_of(run: Named, trusted: list[str], inside: Inside) -> dict[str, Any]:
    """The checked configuration of a named run, with references.

    That of a checkpoint beside which none lies is inside it, and read by ``inside``. Raises
    CheckpointError where it is damaged or refused.
    """
    file = _recorded(run.path)
    in_run = run.path.is_dir() or run.path.resolve().parent.name == "checkpoints"
    if not (in_run and file.exists()):
        choose_threads(run.devices)
        return with_references(inside(run.path, run.setting, trusted))
    setting = f"{run.setting}={run.path}"
    try:
        config = plain_yaml(read_regular(file, MAX_CONFIG).decode())
        choose_threads(run.devices or _devices_of(config))  # what is checked brings torch along
        check_config(config, trusted)
        return with_references(config)
    except OSError as error:
        raise CheckpointError(f"{setting}: cannot read {file.name} ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        why = f"refused, its {file.name} {first_line(error)}"
        raise CheckpointError(f"{setting}: {why}") from error


def _trusted(words: list[str]) -> list[str]:
    """Packages that are vouched for on the command line."""
    typed = dict(map(_pair, words)).get(TRUSTED, "")
    return re.findall(r"[\w.]+", typed)


def _devices_of(config: object) -> int:
    trainer = config.get("trainer") if isinstance(config, dict) else None
    number = trainer.get("devices") if isinstance(trainer, dict) else None
    return number if isinstance(number, int) else 1


def on_run(config_name: str, words: list[str], inside: Inside) -> tuple[str, list[str]]:
    """Name of the primary configuration, and the words that are typed on it.

    Where a run is named it lies in Hydra's store: ``config_name`` with the run's groups in it.
    Raises CheckpointError where the run's configuration is damaged or refused.

    Arguments:
        config_name: of the entry point.
        words: of the command line.
        inside: reads the configuration inside a checkpoint.
    """
    run = named_run(words)
    if run is None:
        return config_name, words
    trusted = _trusted(words)
    config = config_of(run, trusted, inside)
    own = run.own or is_own(config)
    config = _of_base(config, config_name, run)
    _check_built(config, run, trusted)
    typed = {_pair(word)[0] for word in words}
    if STARTS & typed:  # one replaces the other
        config = {key: config[key] for key in config if key not in STARTS}
    if not own:
        needed = config_name != "sample"
        config = without_places(config, typed, f"{run.setting}={run.path}", needed)
    groups = {key: node for key, node in config.items() if (CONF / key).is_dir()}
    store = ConfigStore.instance()
    for group, node in groups.items():
        store.store(name=OF_RUN, group=group, node=node or {})
    primary = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))
    primary["defaults"] = _defaults(primary["defaults"], groups)
    if config_name not in LEFT_OUT:
        primary |= {key: value for key, value in config.items() if key not in groups}
        primary["run_dir"] = _named_for(primary["run_dir"], config)
    name = f"{config_name}_{OF_RUN}"
    store.store(name=name, node=primary)
    return name, _fitted(words, config)


def _check_built(config: dict[str, Any], run: Named, trusted: list[str]) -> None:
    try:
        for group, node in config.items():
            if (CONF / group).is_dir():
                _check_node(group, node)
        check_built(config, trusted)
    except ValueError as error:
        refused = f"{run.setting}={run.path}: refused, its configuration's"
        raise CheckpointError(f"{refused} {first_line(error)}") from error


def _check_node(group: str, node: object) -> None:
    """Raise ValueError unless it is a node of settings that brings no file of Hydra's along.

    A text would be parsed as YAML, and ``defaults`` read as files to compose.
    """
    if group not in NEEDED and node is None:
        return
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise ValueError(f"{group} is {shown(node)}, settings were expected")
    if "defaults" in node:
        raise ValueError(f"{group} has a setting 'defaults', which is none")
    if group in OBJECTS and "_target_" not in node:
        raise ValueError(f"{group} names nothing to build")


def _of_base(config: dict[str, Any], config_name: str, run: Named) -> dict[str, Any]:
    """What of a run's configuration this entry point starts from."""
    primary = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
    known = {key for key in primary if key not in NEVER}
    known |= {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    known -= NEVER if run.own else OF_START
    known -= LEFT_OUT.get(config_name, set())
    config = {key: node for key, node in config.items() if key in known}
    if not run.own and isinstance(config.get("trainer"), dict):
        default = yaml.safe_load((CONF / "trainer" / "default.yaml").read_text(encoding="utf-8"))
        config["trainer"] = config["trainer"] | {key: default[key] for key in OF_MACHINE}
    return config


def _defaults(listed: list[Any], groups: Mapping[str, Any]) -> list[Any]:
    """Hydra's defaults list with the run's groups: each where it stood, further ones behind."""
    left = dict.fromkeys(groups)
    defaults = []
    for entry in listed:
        group = next(iter(entry)) if isinstance(entry, dict) else None
        if group in left:
            del left[group]
            entry = {group: OF_RUN}
        defaults.append(entry)
    place = 1 + defaults.index("_self_")
    return [*defaults[:place], *({group: OF_RUN} for group in left), *defaults[place:]]


def _named_for(run_dir: str, config: Mapping[str, Any]) -> str:
    """The pattern of a new run's directory with the names of this one's model and data set."""
    for group in ("model", "dataset"):
        name = name_of_choice(OF_RUN, config[group])
        run_dir = run_dir.replace(f"${{hydra:runtime.choices.{group}}}", name)
    return run_dir


def _fitted(words: list[str], config: Mapping[str, Any]) -> list[str]:
    """Words that add or take away, where the run has that already: its own can be typed again."""
    kept = []
    for word in words:
        key = re.match(r"(\+|~)([\w.]+)(=|$)", word)
        path = tuple(key[2].split(".")) if key else ()
        if key is None or path[0] not in config:
            kept.append(word)
        elif key[1] == "+":
            kept.append(word[1:] if (CONF / key[2]).is_dir() else f"+{word}")
        elif at(config, path, NOWHERE) is not NOWHERE:
            kept.append(word)
    return kept
