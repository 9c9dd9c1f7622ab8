"""Settings held against the types that the constructors declare: their signatures are the only schema there is."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from src.comparison.runs import typed
from src.errors import ConfigError, require
from src.config.explain import nearest

AN_OBJECT = "an object: a node of settings with a _target_"
PLAIN = {  # what a value of a configuration can be, by the type that a constructor declares
    **{
        int: int,
        float: (int, float),
        bool: bool,
        str: str,
        NoneType: NoneType,
        Path: str,
        os.PathLike: str,
    },
}
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
LARGEST = {float: 3.4e38, int: 2**63 - 1, bool: 1}  # what tensors can hold
LISTS, MAPPINGS = (list, tuple, Sequence, Iterable), (dict, Mapping)
OF_OBJECTS = ("callback", "logger")  # groups of any number of objects, each with a name
FILLED_IN = {"trainer.max_steps"}  # null until the data are known


def check_settings(cfg: DictConfig, **built_by_hand: type) -> None:
    """Raise ConfigError, by the name that is typed, where a value is of another type than its constructor declares.

    Numbers must be finite, and what nodes with a ``_target_`` hold must be known to the target. built_by_hand: classes
    of nodes without a ``_target_``. What cannot be imported or understood is left to Hydra, which has a word on it.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    for path, node in _nodes(raw, ""):
        for key, value in node.items():
            name = f"{path}{key}"
            if isinstance(value, int | float):
                most = LARGEST[type(value)]
                require(
                    abs(value) <= most,
                    name,
                    value,
                    f"must be a finite number, at most {most:.2g} in size",
                )
            sensible = path[:-1] not in OF_OBJECTS or value is None or isinstance(value, Mapping)
            require(sensible, name, value, f"must be {AN_OBJECT}, or null")
        target = built_by_hand.get(path[:-1]) or node.get("_target_")
        if target is not None:
            _check_node(raw, path, node, target)


def setting_of(raw: Mapping[str, Any], path: str) -> tuple[str, Any]:
    """Name as typed and value of the setting at ``path``, which may be, or lie in, a reference to another one.

    raw: an unresolved configuration. ``model.schedule.offset`` is ``schedule.offset`` where model.schedule is
    ``${schedule}``. The value is ``???`` where there is none.
    """
    done: list[str] = []
    rest, node = path.split("."), raw
    followed: set[str] = set()  # in circles nobody gets anywhere
    while rest:
        done.append(rest.pop(0))
        node = node.get(done[-1], "???") if isinstance(node, Mapping) else "???"
        reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", node) if isinstance(node, str) else None
        if reference and node not in followed:
            followed.add(node)
            above = done[: -len(reference[1])] if reference[1] else []
            done, rest, node = [], [*above, *reference[2].split("."), *rest], raw
    return ".".join(done), node


def flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all settings below ``node``."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _nodes(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All nodes with their paths, which end in a dot."""
    yield path, node
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _nodes(value, f"{path}{key}.")


def _check_node(raw: Mapping[str, Any], path: str, node: Mapping[str, Any], target: Any) -> None:  # noqa: ANN401
    try:
        target = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(target).parameters
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (ErrorDuringImport, NameError, TypeError, ValueError):
        return
    complete = "_target_" in node and all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    for key in node:
        name, value = setting_of(raw, f"{path}{key}")
        if complete and key not in parameters and not key.startswith("_"):
            advice = nearest(key, list(parameters)) or f"; there are {', '.join(parameters)}"
            raise ConfigError(f"{path}{key}={typed(value)}: there is no such setting{advice}")
        if key in hints and not (value is None and name in FILLED_IN):
            _check(name, value, hints[key])


def _check(name: str, value: object, hint: Any) -> None:  # noqa: ANN401
    of_mapping = [get_args(one) for one in (hint, *get_args(hint)) if get_origin(one) in MAPPINGS]
    if of_mapping and isinstance(value, dict):
        for key, one in value.items():
            _check(f"{name}.{key}", one, of_mapping[0][1])
    elif not _fits(value, hint):
        raise ConfigError(f"{name}={typed(value)}: must be {' or '.join(_words(hint))}")


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401
    """Whether a value of a configuration may be given for ``hint``; a whole number is a number."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return any(type(value) is type(one) for one in inner)
    if (
        kind is Any
        or isinstance(kind, TypeVar)
        or (isinstance(value, str) and ("${" in value or value == "???"))
    ):
        return True  # the last two are resolved, or found missing, later
    if isinstance(value, list):
        return kind in LISTS and all(_fits(one, inner[0]) for one in value if inner)
    if isinstance(value, dict):
        return kind not in PLAIN and kind not in LISTS
    return isinstance(value, PLAIN.get(kind, ())) and (kind is bool or not isinstance(value, bool))


def _words(hint: Any) -> list[str]:  # noqa: ANN401
    """What ``hint`` allows; that an object can be given as well is told only where nothing else can."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        words = list(dict.fromkeys(word for one in inner for word in _words(one)))
        implied = {AN_OBJECT} if set(words) - {AN_OBJECT, "null"} else set()
        return [
            word
            for word in words
            if word not in implied | ({"an integer"} if "a number" in words else set())
        ]
    if kind is Literal:
        return list(map(str, inner))
    if kind in LISTS:
        return [f"a list, each {' or '.join(_words(inner[0]))}" if inner else "a list"]
    return [WORDS.get(kind, "text" if kind in PLAIN else AN_OBJECT)]
