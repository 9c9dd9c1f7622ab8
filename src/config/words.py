"""Settings as words: how values, options and names are typed, and how they are told apart."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

OF_OBJECTS = ("callback", "logger")  # groups of any number of objects, each with a name

OF_RUN = "of_run"  # the option of each group that a named run's own node is


def typed(value: Any) -> str:  # noqa: ANN401 (whatever a configuration can hold)
    """A value as it is typed on the command line: ``null``, ``true``, ``[1,2]``, ``0.003``."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)


def quoted(text: str) -> str:
    """In quotes between which Hydra's grammar takes any letter literally."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f"'{escaped}'"


def brief(value: Any) -> str:  # noqa: ANN401 (whatever a context can hold)
    """A value for a reader, a node of a configuration as ``ddim eta=1.0 num_steps=50``."""
    if isinstance(value, dict):
        settings = [f"{key}={typed(held)}" for key, held in value.items() if key[:1] != "_"]
        return " ".join([*filter(None, [option_of(value)]), *settings])
    if value and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return f"{value:.4g}" if isinstance(value, float) else typed(value)


def option_of(node: Mapping[str, Any]) -> str | None:
    """Name of the option that a node is: ``cosine`` of ``src.schedule.cosine.cosine``.

    The module of a target in a room of its own, else its class in small letters (``epsilon`` of
    ``src.prediction.Epsilon``); None where the node names none, or several.
    """
    target = node.get("_target_")
    if target is None:  # encoder and decoder of one network, the loader of a data set
        options = {option_of(child) for child in node.values() if isinstance(child, dict)}
        return options.pop() if len(options) == 1 else None
    parts = str(target).split(".")  # foreign configurations may hold anything
    if parts[0] == "src" and len(parts) > 3:
        return parts[-2]
    return re.sub(r"(?<=[a-z])(?=[A-Z]{2})", "_", parts[-1]).lower()


def name_of_choice(option: str, node: Mapping[str, Any]) -> str:
    """The option that was chosen of a group; where it is the named run's node, what that is."""
    return (option_of(node) or option) if option == OF_RUN else option


def flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all settings below ``node``."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """``node`` and all nodes below it with their paths, which end in a dot where there is one."""
    yield path, node
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from nodes(value, f"{path}{key}.")


def names(node: Mapping[str, Any]) -> list[str]:
    """Dotted names of all settings and nodes below ``node``."""
    return [f"{path}{key}" for path, held in nodes(node) for key in held]


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean X?`` for the known name closest to ``name``, or an empty string."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.78)
    return f"; did you mean {found[0]}?" if found else ""


def no_such_setting(key: str, known: list[str]) -> str:
    """That there is no setting ``key``, with the nearest of the same node, or all of these."""
    parent = key.rpartition(".")[0]
    beside = [name for name in known if parent and name.rpartition(".")[0] == parent]
    advice = nearest(key, beside or known) or _longer(key, beside) or _longer(key, known)
    if beside and not advice:
        advice = f"; there are {', '.join(name.rpartition('.')[2] for name in beside)}"
    return f"there is no setting {key!r}{advice}"


def _longer(key: str, known: list[str]) -> str:
    """``; did you mean a.x_b?`` for ``b``: the names that end in the same words, if few do."""
    last = key.rpartition(".")[2]
    found = [name for name in known if re.search(rf"(\b|_){re.escape(last)}$", name)]
    return f"; did you mean {' or '.join(found)}?" if 0 < len(found) <= 3 else ""


def unused_group(group: str) -> str:
    """That the group is there, and not in this configuration."""
    return f"nothing in this configuration uses the group {group!r} (another model may)"
