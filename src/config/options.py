"""Hydra's own options among the words of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from src.config.words import nearest
from src.errors import ConfigError, require


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options wherever they stand, each as one word (``--config-dir=DIR``), and the overrides.

    Hydra takes none of the overrides behind an option that stands behind an override. Raises
    ConfigError for an option that it does not have, or that misses its value.
    """
    options: list[str] = []
    overrides: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word[:1] == "-" and word not in ("-", "--"):
            options.append(_option(word, waiting))
        else:
            overrides.append(word)
    return options, overrides


def _option(word: str, following: list[str]) -> str:
    """The option of a word; its value may be the first of the following words."""
    typed, equals, value = word.partition("=")
    action = _action(typed)
    name = action.option_strings[0]
    if action.nargs == 0:
        require(not equals, name, value, "takes no value")
        return name
    if not equals and action.nargs == "?":  # may be left out
        is_given = bool(following) and following[0] in action.choices
        return f"{name}={following.pop(0) if is_given else action.const}"
    value = value if equals or not following else following.pop(0)
    require(value != "", name, value, f"needs a value, as in {name} VALUE")
    if action.choices is not None:
        allowed = f"must be {', '.join(action.choices)}"
        require(value in action.choices, name, value, allowed)
    return f"{name}={value}"


def _action(typed: str) -> argparse.Action:
    """What Hydra does with an option; the beginning of a long name is enough where it is clear."""
    actions = [action for action in get_args_parser()._actions if action.option_strings]
    known = {name: action for action in actions for name in action.option_strings}
    begun = [name for name in known if typed[:2] == "--" and name.startswith(typed)]
    if typed not in known and len(begun) != 1:
        advice = nearest(typed, list(known)) or "; --hydra-help shows those that there are"
        raise ConfigError(f"{typed}: there is no such option{advice}")
    return known[typed if typed in known else begun[0]]
