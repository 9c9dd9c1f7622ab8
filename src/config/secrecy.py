"""Secrets stay in the environment: settings are recorded in files, checkpoints and at W&B."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from omegaconf.resolvers import oc

from src.config.url_secrets import without_credentials, wrong_in
from src.errors import ConfigError

VARIABLE = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|_PWD$", re.IGNORECASE)
PLACE = re.compile("(DIR|DIRECTORY|FOLDER|FILE|PATH|HOME|ROOT|SOCK)$", re.IGNORECASE)
SETTING = re.compile(
    r"(^|_)((api|access|secret|private)?key|token|secret|pass(word|wd|phrase)?|credentials?)$",
    re.IGNORECASE,
)
SHORTEST = 8  # characters; values like "true" say nothing
WORDS = re.compile(r"[a-z_./]+", re.IGNORECASE)
ELSEWHERE = "set it in the environment, where W&B and others look for it (WANDB_API_KEY)"


def refuse_secrets(words: list[str]) -> None:
    """Raise ConfigError where an override sets a secret: by its name, its value, or in a URL."""
    known = _secrets()
    for word in words:
        key, _, value = word.partition("=")
        # the names in {name: value}
        inner = re.findall(r"(\w+)['\"]?\s*:", value) if "{" in value else []
        for name in (*re.split(r"[.@/]", key.lstrip("+~")), *inner):
            if SETTING.search(name):
                why = f"{name!r} looks like a secret, and overrides are recorded; {ELSEWHERE}"
                raise ConfigError(f"{masked(key)}=...: {why}")
        for secret, variable in known.items():
            if secret in word:
                name = key.replace(secret, "...")
                raise ConfigError(f"{name}=...: holds the value of ${variable}; leave it out")
        _refuse_urls(key, word)


def refuse_composed(cfg: DictConfig) -> None:
    """Raise ConfigError where a composed configuration holds a secret, whatever file it is from.

    As it is written, and with its references followed, where they can be.
    """
    refuse_recorded(OmegaConf.to_container(cfg, resolve=False))
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        return  # whoever builds from it says what is wrong; what is recorded is looked at again
    refuse_recorded(resolved)


def refuse_recorded(content: Any) -> None:  # noqa: ANN401 (any value of a configuration)
    """Raise ConfigError where plain values that will be written hold a secret."""
    known = _secrets()
    for path, key, value in _leaves(content):
        name = masked(path)
        if SETTING.search(key) and value not in (None, ""):
            why = f"{masked(key)!r} looks like a secret, and settings are recorded; {ELSEWHERE}"
            raise ConfigError(f"{name}=...: {why}")
        for text in (key, value):
            if not isinstance(text, str):
                continue
            for secret, variable in known.items():
                if _holds(text, secret):
                    raise ConfigError(f"{name}=...: holds the value of ${variable}; leave it out")
            _refuse_urls(name, text)


def masked(text: str) -> str:
    """A text to be printed, with ``***`` in the place of known secrets and passwords in URLs."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return without_credentials(text)


def _refuse_urls(setting: str, text: str) -> None:
    found = wrong_in(text)
    if found:
        raise ConfigError(f"{without_credentials(setting)}=...: {found}")


def _holds(text: str, secret: str) -> bool:
    """Whether a setting is a secret; one that is but a word may be part of any name of ours."""
    return text == secret if WORDS.fullmatch(secret) else secret in text


def _leaves(content: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:  # noqa: ANN401
    """Dotted name, last key and value of all that lies in nested nodes and lists."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _leaves(value, path, key)
    else:
        yield path, key, content


def _secrets() -> dict[str, str]:
    """Values of secret variables, as they are and escaped, longest first -> their variables."""
    found: dict[str, str] = {}
    for variable, value in os.environ.items():
        if _is_secret(variable, value):
            forms = value, quote(value, safe=""), quote(value), repr(value), json.dumps(value)
            found |= {form.strip("'\"") or value: variable for form in forms}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _is_secret(variable: str, value: str) -> bool:
    """Whether an environment variable holds one; the place of a key is none.

    A place is a path that is there, or that its variable's name says to be one: a secret may begin
    with ``/`` as well.
    """
    if not VARIABLE.search(variable) or len(value) < SHORTEST:
        return False
    return not os.path.isabs(value) or not (PLACE.search(variable) or os.path.exists(value))


def _environment(variable: str, *default: str | None) -> str | None:
    """``${oc.env:NAME}``, for names that are no secret."""
    if VARIABLE.search(variable):
        raise InterpolationResolutionError(
            f"${{oc.env:{variable}}} looks like a secret, and configurations are recorded"
        )
    return oc.env(variable, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
