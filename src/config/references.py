"""References between the settings of a run: ``model.sampler`` is ``${sampler}``.

A recorded configuration keeps a value that is one reference and nothing else; all others are
recorded as what they came to. OmegaConf's own resolver never sees a stranger's text: a few hundred
characters of it can take minutes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from src.config.words import nodes

CONF = Path(__file__).resolve().parents[2] / "conf"
REFERENCE = re.compile(r"\$\{(\.*)([A-Za-z_]\w*(?:\.\w+)*)\}")
PLACES = ("${run_dir}", "${cache_dir}", "${dataset.root}")  # what another run says is not asked
MAX_VALUES = 100_000
MAX_LEVELS = 64  # of nodes in each other and references to references

Steps = tuple[str, ...]


def is_reference(value: object) -> bool:
    """Whether a value is one reference to another setting, and nothing else."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def target_of(reference: str, path: Steps) -> Steps:
    """Where the reference at ``path`` leads: from the top, or from as many levels up as dots."""
    dots, name = REFERENCE.fullmatch(reference).groups()
    above = path[: -len(dots)] if dots else ()
    return (*above, *name.split("."))


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what its references refer to in their place.

    Raises ValueError where one leads nowhere or in a circle, or where there would be more than
    MAX_VALUES values or MAX_LEVELS levels.
    """
    return _Resolver(config).value((), config, ())


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration without its provenance, in which stands what was typed."""
    return {group: node for group, node in config.items() if group != "provenance"}


def without_references(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration in which nothing refers to anything; raises as ``resolved``."""
    return {**config, **resolved(settings_of(config))}


class _Resolver:
    """Follows references, and counts each value before it is made.

    config: whose references are followed.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.left = MAX_VALUES

    def value(self, path: Steps, node: object, followed: tuple[Steps, ...]) -> Any:  # noqa: ANN401
        """What the node at ``path`` comes to; ``followed``: places of the references to it."""
        self.left -= 1
        if self.left < 0 or len(path) + len(followed) > MAX_LEVELS:
            raise ValueError(f"refers to more than {MAX_VALUES} values, or {MAX_LEVELS} levels")
        if is_reference(node):
            where, found = self._follow(path, node, followed)
            return self.value(where, found, (*followed, path))
        if isinstance(node, dict):
            return {key: self.value((*path, str(key)), v, followed) for key, v in node.items()}
        if isinstance(node, list):
            return [self.value((*path, str(i)), v, followed) for i, v in enumerate(node)]
        return node

    def _follow(
        self, path: Steps, reference: str, followed: tuple[Steps, ...]
    ) -> tuple[Steps, object]:
        """Place and value that the reference at ``path`` names, itself perhaps a reference."""
        if path in followed:
            raise ValueError(f"refers in a circle ({reference})")
        where: Steps = ()
        node: object = self.config
        for step in target_of(reference, path):
            while is_reference(node):
                where, node = self._follow(where, node, (*followed, path))
            where, node = (*where, step), _child(node, step, reference)
        return where, node


def _child(node: object, step: str, reference: str) -> object:
    if isinstance(node, Mapping) and step in node:
        return node[step]
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        return node[int(step)]
    raise ValueError(f"refers to {reference}, which is not there")


def recorded(raw: Any, full: Any) -> Any:  # noqa: ANN401 (any value of a configuration)
    """A configuration to be written: references of ``raw`` kept, all else as in ``full``.

    Arguments:
        raw: the configuration before it is resolved.
        full: the same one resolved.
    """
    if is_reference(raw):
        return raw
    if isinstance(raw, dict):
        return {key: recorded(value, full[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [recorded(value, there) for value, there in zip(raw, full, strict=True)]
    return full


def with_references(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration in which references stand wherever ``conf/`` has them.

    Runs of before recorded what they came to. A reference stands again where its value is still
    that of its target; where it is one to a place on a disk, always. Raises as ``resolved``.
    """
    full, kept = without_references(config), dict(config)
    for path, target, reference in references_of_conf():
        held = at(kept, path, NOWHERE)
        if held is NOWHERE or at(kept, (*path[:-1], "_target_")) != target:
            continue
        is_same = at(full, target_of(reference, path), NOWHERE) == at(full, path)
        if is_same or reference in PLACES:
            kept = replaced(kept, path, reference)
    return kept


def as_referred(word: str) -> str:
    """An override below a reference of ``conf/`` as one of what is referred to.

    ``model.sampler.num_steps=5`` becomes ``sampler.num_steps=5``; others stay.
    """
    key, equals, value = word.partition("=")
    path = tuple(key.split("."))
    if len(path) < 3 or not equals:
        return word
    for place, _, reference in references_of_conf():
        if path[: len(place)] == place and len(path) > len(place):
            target = target_of(reference, place)
            return f"{'.'.join((*target, *path[len(place) :]))}={value}"
    return word


NOWHERE = object()  # what ``at`` can give where there is no value


def at(node: Any, path: Steps, default: object = None) -> Any:  # noqa: ANN401
    """The value at a path, references not followed; ``default`` where there is none."""
    for step in path:
        try:
            node = _child(node, step, "")
        except ValueError:
            return default
    return node


def replaced(node: Any, path: Steps, value: object) -> Any:  # noqa: ANN401
    """A copy of nested dictionaries and lists with another value at ``path``."""
    if not path:
        return value
    if isinstance(node, list):
        place = int(path[0])
        return [*node[:place], replaced(node[place], path[1:], value), *node[place + 1 :]]
    return {**node, path[0]: replaced(node[path[0]], path[1:], value)}


@functools.cache
def options_of_conf() -> tuple[tuple[Steps, dict[str, Any]], ...]:
    """Every option in ``conf/``: where its node stands in a configuration, and the node."""
    found = []
    for file in sorted(CONF.glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8")
        is_global = text.startswith("# @package _global_")
        node = yaml.safe_load(text) or {}
        found.append((() if is_global else (file.parent.name,), node))
    return tuple(found)


@functools.cache
def references_of_conf() -> tuple[tuple[Steps, str | None, str], ...]:
    """Every reference in ``conf/``: path, ``_target_`` of the node that holds it, reference."""
    found: dict[tuple[Steps, str | None, str], None] = {}
    for place, node in options_of_conf():
        for path, target, reference in _references(node):
            found[(*place, *path), target, reference] = None
    return tuple(found)


@functools.cache
def targets_of_conf() -> frozenset[str]:
    """Every ``_target_`` in ``conf/``."""
    held = (inner for _, option in options_of_conf() for _, inner in nodes(option))
    return frozenset(node["_target_"] for node in held if "_target_" in node)


def _references(node: Mapping[str, Any] | list[Any]) -> Iterator[tuple[Steps, str | None, str]]:
    is_list = isinstance(node, list)
    target = None if is_list else node.get("_target_")
    for key, value in enumerate(node) if is_list else node.items():
        if is_reference(value):
            yield (str(key),), target, value
        elif isinstance(value, Mapping | list):
            for path, held, reference in _references(value):
                yield (str(key), *path), held, reference
