"""Settings that nothing reads, wherever they come from: Hydra refuses only those that are typed.

A setting is known where the configuration's own files name it (the primary one, and an option of
the node), where a reference leads to it, or where the target of its node takes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.origin import Source, header, sources
from src.config.references import CONF
from src.config.signature import parameters_of
from src.config.words import (
    OF_OBJECTS,
    OF_RUN,
    flat,
    names,
    no_such_setting,
    nodes,
    typed,
    unused_group,
)
from src.errors import ConfigError, require

STUDY = "sweep/study"  # the file of the whole configuration that says what a study has
# a data set has what this class takes, of which the seed is the run's, and what is read beside it
DATA, BESIDE = "src.training.data.ImageDataModule", {"root", "max_steps", "num_classes"}


def check_read(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise ConfigError for a setting that nothing reads, with its file and the nearest one.

    Also for a file that sets another node than it should, or no node where there must be one.

    Arguments:
        cfg: what Hydra has composed last.
        overrides: those of the command line.
    """
    made_of = sources()
    for source in made_of:
        if not source.name.endswith(f"/{OF_RUN}"):  # a node, and no file
            _check_package(source)
    raw = OmegaConf.to_container(cfg, resolve=False)
    raw.pop("hydra", None)
    for source in made_of:
        _check_node(source, raw, made_of)
    known = Known(raw, made_of)
    for setting in _unread(known, raw, ""):
        words = [word for word in overrides if _sets(word, setting)]
        files = [source.file for source in made_of if source.sets(setting)]
        if words or files:  # else a program has put it there
            where = words[-1] if words else f"{files[-1]}: {setting}"
            is_group = (CONF / setting).is_dir()
            like = known.like(setting)
            why = unused_group(setting) if is_group else no_such_setting(setting, like)
            raise ConfigError(f"{where}: {why}")


def check_taken(node: str, settings: Iterable[str], taken: Iterable[str]) -> None:
    """Raise ConfigError for one of the settings of a node of Hydra's that is none of ``taken``."""
    known = [f"{node}.{name}" for name in taken]
    for setting in (f"{node}.{name}" for name in settings):
        if setting not in known:
            files = [source.file for source in sources() if source.sets(setting)]
            where = ": ".join([*files[-1:], setting])
            line = f"{where}: {no_such_setting(setting, known)}"
            raise ConfigError(line.replace("hydra.launcher.", "launcher."))  # as it is typed


class Known:
    """What is known of a configuration.

    Arguments:
        raw: all of it, unresolved.
        made_of: its files.
    """

    def __init__(self, raw: Mapping[str, Any], made_of: Sequence[Source]) -> None:
        self.raw = raw
        self.made_of = made_of

    @cached_property
    def named(self) -> set[str]:
        """Settings and nodes that the configuration's own files name."""
        primary = {name for one in self.made_of if not one.group for name in names(one.content)}
        places = {name.partition(".")[0] for name in primary}
        places |= {folder.name for folder in CONF.iterdir() if folder.is_dir()}
        own: set[str] = set()
        for source in self.made_of:
            node = "sweep" if source.name == STUDY else source.package
            top = node.partition(".")[0]
            if top and top in {*places, source.group.partition("/")[0]}:
                own |= {name for name in names(source.content) if f"{name}.".startswith(f"{node}.")}
                own.add(top)
        data = parameters_of(DATA)
        if data is not None:
            read = {f"dataset.{name}" for name in BESIDE | {*data} - {"seed"}} | self.referred
            own = {name for name in own if name[:8] != "dataset." or _child(name) in read}
        return primary | own

    @cached_property
    def objects(self) -> set[str]:
        """Nodes with a target; also those that an override has taken away."""
        contents = [self.raw, *(source.content for source in self.made_of)]
        below = [nodes(content) for content in contents]
        return {path[:-1] for found in below for path, node in found if "_target_" in node}

    @cached_property
    def referred(self) -> set[str]:
        """Settings that ``${...}`` names somewhere, as far as their text tells."""
        found: set[str] = set()
        for name, value in flat(self.raw):
            inside = " ".join(re.findall(r"\$\{([^}]*)", str(value)))
            for dots, path in re.findall(r"(\.*)([A-Za-z_][\w.]*)", inside):
                above = name.split(".")[: -len(dots)] if dots else []
                found.add(".".join([*above, path]))
        return found

    @cached_property
    def led_through(self) -> set[str]:
        """The nodes in which the settings lie that are referred to, and these themselves."""
        return {".".join(name.split(".")[: k + 1]) for name in self.referred for k in range(20)}

    def holds(self, setting: str) -> bool:
        """Whether own files name it, or a reference leads to it."""
        return setting in self.named or setting in self.led_through

    def has_inner(self, setting: str) -> bool:
        """Whether own files name something below it."""
        return any(name.startswith(f"{setting}.") for name in self.named)

    def is_option(self, setting: str) -> bool:
        """Whether it is an object that an option of ``callback`` or ``logger`` brings."""
        group, _, option = setting.partition(".")
        return group in OF_OBJECTS and (CONF / group / f"{option}.yaml").exists()

    def like(self, setting: str) -> list[str]:
        """The settings that may be meant."""
        node = setting.rpartition(".")[0]
        target = OmegaConf.select(OmegaConf.create(self.raw), f"{node}._target_") if node else None
        taken = [f"{node}.{name}" for name in parameters_of(target) or ()] if target else []
        options = [f"{node}.{file.stem}" for file in (CONF / node).glob("*.yaml")]
        brought = options if node in OF_OBJECTS else []
        shown = [name for name in sorted(self.named) if "._" not in name]
        return list(dict.fromkeys([*taken, *brought, *shown]))


def _unread(
    known: Known, node: Mapping[str, Any], path: str, within: bool = False
) -> Iterator[str]:
    """Names of what nothing reads below a node.

    Arguments:
        known: what is known.
        node: where to look.
        path: its name and a dot; "" is the whole configuration.
        within: whether the node, or one above it, has a target.
    """
    target = node.get("_target_")
    taken: list[str] | None = None
    for key, value in node.items():
        name = f"{path}{key}"
        is_object = name in known.objects
        if known.holds(name) or known.is_option(name):
            is_read = True
        elif target is None:
            of_objects = within or path[:-1] in OF_OBJECTS
            is_read = (is_object and of_objects) or path[:-1] in known.referred
        else:
            taken = parameters_of(str(target)) if taken is None else taken
            is_read = taken is None or str(key)[:1] == "_" or key in taken
        if not is_read:
            yield name
        elif isinstance(value, Mapping) and (is_object or known.has_inner(name)):
            yield from _unread(known, value, f"{name}.", within or target is not None)


def _child(name: str) -> str:
    """``dataset.load`` of ``dataset.load.root``."""
    return ".".join(name.split(".")[:2])


def _sets(word: str, setting: str) -> bool:
    """Whether an override is of the setting, of something below, or of a node with it."""
    key, _, value = word.lstrip("+").partition("=")
    is_node = value[:1] == "{"
    is_option = "." not in key and (CONF / key).is_dir() and not is_node
    of_node = is_node and setting.startswith(f"{key}.")
    return not is_option and (of_node or f"{key}.".startswith(f"{setting}."))


def _check_package(source: Source) -> None:
    """Raise ConfigError where a file goes elsewhere than most others of its group.

    Without its first line a recipe sets the node ``experiment``, which nothing reads.
    """
    usual = _usual_package(CONF / source.group) if source.group else None
    if usual is not None and usual.removeprefix("_global_") != source.package:
        wanted = f"the first line must be '# @package {usual}', as in conf/{source.group}"
        raise ConfigError(f"{source.file}: sets {source.package or 'everything'!r}: {wanted}")


@cache
def _usual_package(folder: Path) -> str | None:
    """What most files of a group name as their package; None where that is the group itself."""
    counted = Counter(map(header, folder.glob("*.yaml"))).most_common(1)
    return counted[0][0] if counted else None


def _check_node(source: Source, raw: Mapping[str, Any], made_of: Sequence[Source]) -> None:
    """Raise ConfigError where a later file has a plain value for the node of an option."""
    value = raw.get(source.package, {})
    if not isinstance(value, Mapping):
        file = next(one.file for one in reversed(made_of) if one.sets(source.package))
        allowed = "must be settings, each as name: value"
        require(False, f"{file}: {source.package}", typed(value), allowed)
