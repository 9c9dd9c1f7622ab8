"""Files of a composition: each is kept with what it sets; one that cannot be read is named."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.command import short
from src.errors import ConfigError, first_line

LOCAL = "file://"
PACKAGE = re.compile(r"\s*#\s*@package\s+(\S+)")
IN_WORDS = {  # what the parser says of slips that are made often
    "found a tab character": "a tab; indent with spaces",
    "'\\t' that cannot start": "a tab; indent with spaces",
    "cannot start any token": "a tab; indent with spaces (or a letter that begins no value: @ %)",
    "found duplicate key": "is set twice",
    "expected ',' or": "a bracket that is not closed",
    "unexpected end of stream": "a quote or bracket that is not closed",
    "mapping values are not allowed": "a second colon, or a wrong indentation",
    "could not find expected ':'": "a name without a colon",
    "expected <block end>": "a wrong indentation",
    "found another document": "a second document after '---'",
    "unhashable key": "a list or a mapping as a name",
    "undefined alias": "an alias (*x) without its anchor (&x)",
    "did not find expected key": "a wrong indentation",
}


class Source(NamedTuple):
    """One file of a composition.

    Arguments:
        name: ``experiment/mine``.
        file: where it lies, as it is shown.
        package: the node that it sets; "" is the whole configuration.
        is_primary: whether it is the one that all others are composed into.
        content: what it sets, unresolved, from the top of the configuration on.
    """

    name: str
    file: str
    package: str
    is_primary: bool
    content: dict[str, Any]

    @property
    def group(self) -> str:
        """``experiment`` of ``experiment/mine``; "" where it belongs to none."""
        return self.name.rpartition("/")[0]

    def sets(self, setting: str) -> bool:
        """Whether it says something of the setting, given by its dotted name."""
        node: Any = self.content
        for part in setting.split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True


class _Newest:
    """The newest composition: Hydra makes a repository for each."""

    repository: object = None
    sources: list[Source] = []


_load_as_hydra, _read_as_hydra = ConfigLoaderImpl._load_single_config, ConfigRepository.load_config


def sources() -> list[Source]:
    """The files of the newest composition in their order, without Hydra's own."""
    return list(_Newest.sources)


def keep_sources() -> None:
    """Have Hydra keep the files of every composition, and name the one that it cannot read."""
    ConfigLoaderImpl._load_single_config = _load
    ConfigRepository.load_config = _read


def shown(folder: str, name: str) -> str:
    """A file as it is shown: relative to the working directory where that is shorter.

    Arguments:
        folder: as Hydra names it: file:///where, pkg://module.
        name: ``experiment/mine``.
    """
    file = f"{folder.rstrip('/')}/{name.removesuffix('.yaml')}.yaml"
    return short(Path(file.removeprefix(LOCAL))) if file.startswith(LOCAL) else file


def header(file: Path) -> str | None:
    """The package in the first lines of a file; None where they name none."""
    with open(file, encoding="utf-8", errors="replace") as opened:
        found = PACKAGE.match(opened.read(512))
    return found[1] if found else None


def _load(loader: ConfigLoaderImpl, default: Any, repo: Any) -> Any:  # noqa: ANN401 (Hydra's own)
    """In the place of the method that loads a file and puts its settings where they belong."""
    loaded = _load_as_hydra(loader, default=default, repo=repo)
    name = default.config_path
    if not name.startswith("hydra/"):
        content = OmegaConf.to_container(loaded.config, resolve=False)
        file = shown(loaded.path, name)
        kept = Source(name, file, default.package or "", default.primary, content)
        _Newest.sources.append(kept)
    return loaded


def _read(repository: ConfigRepository, config_path: str) -> Any:  # noqa: ANN401 (Hydra's own)
    """In the place of the method that reads a file; raises ConfigError with file, line, cause."""
    if _Newest.repository is not repository:
        _Newest.repository, _Newest.sources = repository, []
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    folder = "" if source is None else f"{source.scheme()}://{source.path}"
    file = shown(folder, config_path)
    if folder.startswith(LOCAL):
        _refuse_mark(file, Path(source.path, config_path).with_suffix(".yaml"))
    try:
        loaded = _read_as_hydra(repository, config_path=config_path)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_of_parser(file, error)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"byte 0x{error.object[error.start]:02x} is no UTF-8"
        raise ConfigError(f"{file}:{line}: {what}; save the file as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is nested too deep, or refers to itself") from error
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None)
        where = f"{file}: {key}" if key else file
        raise ConfigError(f"{where}: {first_line(error)[:200]}") from error
    if loaded is not None and not isinstance(loaded.config, DictConfig):
        raise ConfigError(f"{file}: must be settings (name: value), is a list")
    return loaded


def _of_parser(file: str, error: yaml.MarkedYAMLError) -> str:
    """File, line and cause; where something was left open, the line in which it begins."""
    said = str(error.problem or error.context)
    mark = error.problem_mark or error.context_mark
    words = next((words for part, words in IN_WORDS.items() if part in said), said)
    if words.endswith("not closed") and error.context_mark is not None:
        mark = error.context_mark
    if words == "is set twice":
        words = f"{said.rpartition(' ')[2]} is set twice"
    elif words != said:
        words = f"{words} ({said})"
    where = file if mark is None else f"{file}:{mark.line + 1}"
    return f"{where}: {words}"


def _refuse_mark(file: str, path: Path) -> None:
    """Raise ConfigError for a byte order mark: the package line behind it is not seen."""
    with open(path, "rb") as opened:
        begins = opened.read(len(codecs.BOM_UTF8))
    if begins == codecs.BOM_UTF8:
        why = "begins with a byte order mark, which hides its package line"
        raise ConfigError(f"{file}:1: {why}; save the file as UTF-8 without one")
