"""Settings against the types that constructors declare: their signatures are the only schema."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from src.config.words import OF_OBJECTS, nearest, nodes, typed
from src.errors import ConfigError, require

AN_OBJECT = "an object: a node of settings with a _target_"
PLAIN = {  # what a value of a configuration can be, by the type that a constructor declares
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    NoneType: (NoneType,),
    Path: (str,),
    os.PathLike: (str,),
}
WORDS = {int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}
LARGEST = {float: 3.4e38, int: 2**63 - 1, bool: 1}  # what tensors can hold
LISTS, MAPPINGS = (list, tuple, Sequence, Iterable), (dict, Mapping)
FILLED_IN = {"trainer.max_steps"}  # null until the data are known
OURS = {"trainer.compile"}  # beside those that the target takes


def check_settings(cfg: DictConfig, **built_by_hand: type) -> None:
    """Raise ConfigError where a value is of another type than its constructor declares.

    The error has the name that is typed. Numbers must be finite, and what nodes with a ``_target_``
    hold must be known to the target. What cannot be imported or understood is left to whoever
    builds it, which reports it.

    Arguments:
        cfg: the composed configuration.
        built_by_hand: classes of nodes without a ``_target_``.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    for path, node in nodes(raw):
        for key, value in node.items():
            if isinstance(value, int | float):
                _check_size(f"{path}{key}", value)
            is_object = value is None or isinstance(value, Mapping)
            allowed = f"must be {AN_OBJECT}, or null"
            require(is_object or path[:-1] not in OF_OBJECTS, f"{path}{key}", value, allowed)
        target = built_by_hand.get(path[:-1]) or node.get("_target_")
        if target is not None:
            _check_node(raw, path, node, target)


def setting_of(raw: Mapping[str, Any], path: str) -> tuple[str, Any]:
    """Name as typed and value of the setting at ``path``, which may lie in a reference.

    raw: an unresolved configuration. ``model.schedule.offset`` is ``schedule.offset`` where
    model.schedule is ``${schedule}``. The value is ``???`` where there is none.
    """
    done: list[str] = []
    rest, node = path.split("."), raw
    followed: set[str] = set()  # guards against circular references
    while rest:
        done.append(rest.pop(0))
        node = node.get(done[-1], "???") if isinstance(node, Mapping) else "???"
        reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", node) if isinstance(node, str) else None
        if reference and node not in followed:
            followed.add(node)
            above = done[: -len(reference[1])] if reference[1] else []
            done, rest, node = [], [*above, *reference[2].split("."), *rest], raw
    return ".".join(done), node


def _check_size(name: str, value: float) -> None:
    most = LARGEST[type(value)]
    allowed = f"must be a finite number, at most {most:.2g} in size"
    require(abs(value) <= most, name, value, allowed)


def _check_node(
    raw: Mapping[str, Any],
    path: str,
    node: Mapping[str, Any],
    target: str | type,
) -> None:
    try:
        target = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(target).parameters
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (ErrorDuringImport, NameError, TypeError, ValueError):
        return
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in node:
        is_known = key in parameters or str(key).startswith("_") or f"{path}{key}" in OURS
        if "_target_" in node and not takes_any and not is_known:
            advice = nearest(key, list(parameters)) or f"; there are {', '.join(parameters)}"
            value = typed(setting_of(raw, f"{path}{key}")[1])
            raise ConfigError(f"{path}{key}={value}: there is no such setting{advice}")
        name, value = setting_of(raw, f"{path}{key}")
        if key in hints and not (value is None and name in FILLED_IN):
            _check(name, value, hints[key])


def _check(name: str, value: object, hint: Any) -> None:  # noqa: ANN401
    of_mapping = [get_args(one) for one in (hint, *get_args(hint)) if get_origin(one) in MAPPINGS]
    if of_mapping and isinstance(value, dict):
        for key, one in value.items():
            _check(f"{name}.{key}", one, of_mapping[0][1])
        return
    kind = _kind(hint)
    require(kind.accepts(value), name, typed(value), f"must be {' or '.join(kind.words)}")


class Kind(NamedTuple):
    """accepts: whether a value of a configuration may be given. words: what may be, in words."""

    accepts: Callable[[object], bool]
    words: list[str]


def _kind(hint: Any) -> Kind:  # noqa: ANN401
    """What the type hint of a parameter allows; a whole number is a number."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _any_of([_kind(one) for one in inner])
    if kind is Literal:
        types = {type(one) for one in inner}
        return Kind(lambda value: type(value) in types, [str(one) for one in inner])
    if kind is Any or isinstance(kind, TypeVar):
        return Kind(lambda value: True, [AN_OBJECT])
    if kind in LISTS:
        return _list_of(_kind(inner[0]) if inner else None)
    if kind in PLAIN:
        return Kind(lambda value: _is_plain(value, kind), [WORDS.get(kind, "text")])
    return Kind(lambda value: isinstance(value, dict) or _is_open(value), [AN_OBJECT])


def _any_of(kinds: list[Kind]) -> Kind:
    """That an object can be given as well is said only where nothing else can."""
    words = list(dict.fromkeys(word for kind in kinds for word in kind.words))
    implied = {AN_OBJECT} if set(words) - {AN_OBJECT, "null"} else set()
    if "a number" in words:
        implied.add("an integer")
    shown = [word for word in words if word not in implied]
    return Kind(lambda value: any(kind.accepts(value) for kind in kinds), shown)


def _list_of(element: Kind | None) -> Kind:
    def accepts(value: object) -> bool:
        if not isinstance(value, list):
            return _is_open(value)
        return element is None or all(element.accepts(one) for one in value)

    words = "a list" if element is None else f"a list, each {' or '.join(element.words)}"
    return Kind(accepts, [words])


def _is_plain(value: object, kind: type) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, PLAIN[kind]) or _is_open(value)


def _is_open(value: object) -> bool:
    """Whether the value is resolved, or found missing, later."""
    return isinstance(value, str) and ("${" in value or value == "???")
