"""Whose run it is: what a stranger's configuration says of places and addresses does not count.

A run's configuration carries an HMAC (RFC 2104) by a key that only this user can read. Without a
right one nothing is read from, written to or asked at where the configuration says; it has to be
typed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config.references import options_of_conf, replaced, resolved, settings_of
from src.errors import ConfigError
from src.foreign import shown

KEY_FILE = "GENBENCH_KEY_FILE"
SIGNATURE = "signature"  # in the provenance
KEY_BYTES = 32
NAMES = {"root", "weights", "dirpath", "save_dir", "cache_dir", "storage", "path", "file"}
NAMES |= {"filename", "dir", "directory", "folder", "url", "log_dir"}  # of settings: places


def signed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the signature of this user; without one where no key can be kept."""
    key = _key()
    if key is None:
        return dict(config)
    signature = _signature(config, key)
    return {**config, "provenance": {**config.get("provenance", {}), SIGNATURE: signature}}


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether this user has made the run. Raises ValueError as ``resolved`` does."""
    provenance, key = config.get("provenance"), _key()
    found = provenance.get(SIGNATURE) if isinstance(provenance, Mapping) else None
    if key is None or not isinstance(found, str):
        return False
    return hmac.compare_digest(found.encode(), _signature(config, key).encode())


def without_places(
    config: Mapping[str, Any], typed: set[str], setting: str, needed: bool
) -> dict[str, Any]:
    """A stranger's configuration with no place in it but those of ``conf/`` and what is typed.

    Raises ConfigError where one is ``needed``, which says what to type.

    Arguments:
        config: the run's.
        typed: names of the settings and groups that the command line sets.
        setting: by which the run is named, with its value.
        needed: whether places are; else they become null.
    """
    found = dict(config)
    for path, value in _places(config):
        name = ".".join(path)
        if name in typed or path[0] in typed or value in _defaults(path):
            continue
        if needed:
            why = f"the run was not made by you, and says {name}={shown(value)}"
            raise ConfigError(f"{setting}: {why}; type {name}=... with a place that you trust")
        found = replaced(found, path, None)
    return found


def _key() -> bytes | None:
    """The key of this user, made where there is none; None where it cannot be kept."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path(os.environ.get("HOME", "."), ".config")
    file = Path(os.environ.get(KEY_FILE) or Path(folder, "genbench", "key"))
    with suppress(OSError):
        if not file.exists():
            _make_key(file)
        key = file.read_bytes()
        return key if len(key) == KEY_BYTES else None
    return None


def _make_key(file: Path) -> None:
    """Whole or not at all, readable by this user alone; another process may have been first."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with open(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as written:
        written.write(secrets.token_bytes(KEY_BYTES))
    try:
        with suppress(FileExistsError):
            os.link(made, file)
    finally:
        made.unlink()


def _signature(config: Mapping[str, Any], key: bytes) -> str:
    """Of all settings, with their references followed: how they are written does not matter."""
    text = json.dumps(resolved(settings_of(config)), sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:  # noqa: ANN401
    """What names a place on a disk or a network: by its setting's name, or as it looks."""
    if isinstance(node, Mapping):
        for key, value in settings_of(node).items() if not path else node.items():
            yield from _places(value, (*path, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _places(value, (*path, str(index)))
    elif isinstance(node, str) and _is_place(path[-1], node):
        yield path, node


def _is_place(name: str, value: str) -> bool:
    looks_so = value.startswith(("/", "~", "./", "\\")) or "://" in value
    looks_so |= ".." in re.split(r"[/\\]", value)
    return (name in NAMES or looks_so) and not value.startswith("${")


def _defaults(path: tuple[str, ...]) -> set[Any]:
    """What ``conf/`` itself has at this place, by any option."""
    values = set()
    for place, option in options_of_conf():
        node: Any = option
        for step in path[len(place) :]:
            node = node.get(step) if isinstance(node, Mapping) else None
        if path[: len(place)] == place and isinstance(node, str):
            values.add(OmegaConf.create({"value": node})["value"] if "oc.env" in node else node)
    return values
