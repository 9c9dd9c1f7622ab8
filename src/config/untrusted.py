"""Limits for what others wrote: a configuration is checked as a whole before anything is built.

Functions raise ValueError with the reason, as in "holds 7"; the caller says of which file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml
from yaml.loader import SafeLoader

from src.config.references import resolved, settings_of, targets_of_conf
from src.errors import first_line, require
from src.foreign import MAX_DIGITS, shown

MAX_TEXT = 256 * 2**10  # characters of a configuration
MAX_NODES = 100_000  # values of a configuration
MAX_DEPTH = 32  # of dictionaries and lists in each other
PLAIN = (dict, list, str, int, float, bool, type(None))
BUILT = {  # nodes of a run's configuration that are built later, and from which packages
    "model": {
        "model",
        "network",
        "schedule",
        "sampler",
        "prediction",
        "weighting",
        "likelihood",
        "beta",
    },
    "sampler": {"sampler"},
    "features": {"features"},
    "metric": {"metric", "torchmetrics.image"},
    "dataset": {"dataset"},
}
# functions and classes that are given their settings now and called later
HANDED_OVER = {"sampler", "dataset", "image"}


def values(tree: object, most: int = MAX_NODES) -> Iterator[object]:
    """All values of nested dictionaries and sequences, these included.

    Raises ValueError beyond ``most`` values or MAX_DEPTH levels, so also where a part holds itself.
    """
    waiting = [(tree, 0)]
    seen = 1
    while waiting:
        value, depth = waiting.pop()
        yield value
        parts = children(value)
        seen += len(parts)
        if seen > most or depth > MAX_DEPTH:
            raise ValueError(
                f"holds more than {most} values, or more than {MAX_DEPTH} levels of them"
            )
        waiting += [(part, depth + 1) for part in parts]


def children(value: object) -> Collection[object]:
    """What a dictionary or sequence holds; nothing for other values."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set):
        return value
    return ()


def check_plain(config: object) -> None:
    """Raise ValueError unless all of it, names too, is plain: what JSON can hold."""
    length = 0
    for value in values(config):
        names = value if isinstance(value, dict) else ()
        for part in (value, *names):
            if type(part) not in PLAIN:
                raise ValueError(f"holds {shown(part)}, which is no plain value")
            if type(part) is int and abs(part) >= 10**MAX_DIGITS:
                raise ValueError(f"holds a number of more than {MAX_DIGITS} digits")
            length += len(part) if isinstance(part, str) else 0
    if length > MAX_TEXT:
        raise ValueError(f"has a configuration of more than {MAX_TEXT} characters")


def check_config(config: object, trusted: Collection[str] = ()) -> None:
    """Raise ValueError unless it is a run's configuration, with parts of this project.

    Of its references only those of src/config/references.py may be left in it. trusted: packages
    whose public classes and functions may be named as well.
    """
    check_plain(config)
    if not (isinstance(config, dict) and isinstance(config.get("model"), dict)):
        raise ValueError("describes no model")
    for group, node in resolved(settings_of(config)).items():
        for value in values(node):
            if isinstance(value, str) and ("${" in value or value == "???"):
                raise ValueError(f"has an unresolved value {shown(value)} in its configuration")
            if isinstance(value, dict) and group in BUILT:
                _check_node(value, BUILT[group], trusted)


def check_built(config: Mapping[str, Any], trusted: Collection[str] = ()) -> None:
    """Raise ValueError where training would build what nobody has vouched for.

    What ``conf/`` names itself may be built, and what is public in ``trusted``. The groups of BUILT
    are looked at by ``check_config``.
    """
    for group, node in settings_of(config).items():
        for value in values(node if group not in BUILT else None):
            target = value.get("_target_") if isinstance(value, dict) else None
            named = target is None or target in targets_of_conf()
            if not (named or _is_public(target, trusted)):
                why = f"{group}: wants to build {shown(target)}, which conf/ does not name"
                raise ValueError(f"{why}; {advice_on(target)}")


def check_trusted(value: object) -> None:
    """Raise ConfigError unless ``trusted_packages`` is a list of names."""
    names = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    allowed = "must be a list of names: trusted_packages=[mypackage]"
    require(all(isinstance(name, str) for name in names), "trusted_packages", value, allowed)


def advice_on(target: object) -> str:
    """How to vouch for what a node names."""
    package = str(target).partition(".")[0]
    word = f"trusted_packages=[{package}]" if package.isidentifier() else "trusted_packages"
    return f"{word} on the command line lets it be built, if you trust it"


def _is_public(target: object, trusted: Collection[str]) -> bool:
    """Whether this is a public name of a package that the user has vouched for."""
    parts = target.split(".") if isinstance(target, str) else [""]
    is_known = all(part.isidentifier() and not part.startswith("_") for part in parts)
    return is_known and any(target.startswith(f"{package}.") for package in trusted)


def _check_node(node: dict[str, Any], packages: set[str], trusted: Collection[str]) -> None:
    """Raise ValueError unless the node names a part of ``packages`` and its settings, no more."""
    target = node.get("_target_")
    if _is_public(target, trusted):
        return
    if "_target_" in node and not _is_part(target, packages):
        rooms = ", ".join(sorted(packages))
        why = f"wants to build {shown(target)}, which is not a part of {rooms}"
        raise ValueError(f"{why}; {advice_on(target)}")
    how = {
        name: value
        for name, value in node.items()
        if str(name).startswith("_") and name != "_target_"
    }
    if how != ({"_partial_": True} if target and target.split(".")[1] in HANDED_OVER else {}):
        raise ValueError(f"wants {shown(target)} built with {shown(how)}")


def _is_part(target: object, packages: set[str]) -> bool:
    """Whether this names a public class, or the function that its module is named for.

    Those are all that ``conf/`` names. Helpers, private and imported names are not to be called
    from outside: some of them write files or download. Of torchmetrics these are the metrics of
    images.
    """
    if not isinstance(target, str):
        return False
    if target.startswith("torchmetrics.image."):
        return "torchmetrics.image" in packages and _is_image_metric(target)
    found = re.fullmatch(r"src\.(\w+)(?:\.(\w+))?\.([A-Za-z]\w*)", target)
    if found is None or found[1] not in packages:
        return False
    part = _imported(target)
    here = (getattr(part, "__module__", ""), getattr(part, "__qualname__", "")) == (
        target.rpartition(".")[0],
        found[3],
    )
    return here and (isinstance(part, type) or found[3] in ("load", found[2]))


def _is_image_metric(target: str) -> bool:
    """Whether this is a metric that ``torchmetrics.image`` exports, there or in its module."""
    found = re.fullmatch(r"torchmetrics\.image(?:\.[a-z]\w*)?\.([A-Z]\w*)", target)
    if found is None:
        return False
    exported = _imported(f"torchmetrics.image.{found[1]}")
    metric = _imported("torchmetrics.Metric")  # slow to import
    is_metric = isinstance(exported, type) and issubclass(exported, metric)
    homes = {"torchmetrics.image", getattr(exported, "__module__", "")}
    return is_metric and target.rpartition(".")[0] in homes


def _imported(name: str) -> object:
    """What ``package.module.name`` is, or None where there is no such thing."""
    module, _, part = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), part, None)
    except ImportError:
        return None


class _Loader(SafeLoader):  # in Python: that of C, which ``quick_start`` chooses, asks nobody
    """Refuses references (``&a``, ``*a``): a few lines of them describe more than memory holds."""

    def compose_node(
        self,
        parent: yaml.Node | None,
        index: Any,  # noqa: ANN401 (a key)
    ) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"refers to another part of itself (*{self.peek_event().anchor})")
        return super().compose_node(parent, index)


def plain_yaml(text: str) -> Any:  # noqa: ANN401 (whatever YAML can hold)
    """Content of a YAML document: plain values in our limits.

    Raises ValueError beyond these, yaml.YAMLError where it is no YAML.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"has a configuration of more than {MAX_TEXT} characters")
    try:
        content = _Loader(text).get_single_data()
    except RecursionError as error:
        raise ValueError(f"holds more than {MAX_DEPTH} levels of values") from error
    except (ValueError, yaml.YAMLError):
        raise
    except Exception as error:  # PyYAML raises many kinds on what is no value of its type
        raise ValueError(f"holds what is no value of its type ({first_line(error)})") from error
    check_plain(content)
    return content
