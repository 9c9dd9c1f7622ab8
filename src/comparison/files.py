"""The files of a run that a comparison reads, each checked once: what comes back has its shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from src.config.untrusted import plain_yaml
from src.errors import DataError
from src.foreign import NUMBER, TEXT, check_texts, checked, naming, read_json, read_text
from src.rundir.numbers import Numbers, check_numbers, read_numbers

BESIDE = ("details", "context", "notes")  # of evaluation.json; everything else is a number
MAPPING = (dict, type(None))
OF_NUMBER = {"error": NUMBER, "error_kind": TEXT, "reason": TEXT, "context": MAPPING}
OF_CONTEXT = {
    "checkpoint": TEXT,
    "step": NUMBER,
    "parameters": NUMBER,
    "sampling_seconds_per_image": NUMBER,
}
OF_PROVENANCE = {"git": TEXT, "overrides": (list, type(None))}


def final_numbers(path: Path) -> Numbers:
    """Content of ``metrics.json``; nothing where there is none. Raises DataError, StorageError."""
    try:
        return read_numbers(path)
    except FileNotFoundError:
        return {}


def evaluation(path: Path) -> dict[str, Any]:
    """``numbers``, ``details`` and ``context`` of an evaluation.json; nothing where there is none.

    The details of a number have its ``error``, ``error_kind``, ``reason`` and ``context``. Raises
    DataError, StorageError.
    """
    try:
        with naming(path):
            content = read_json(path)
            numbers = {name: value for name, value in content.items() if name not in BESIDE}
            kinds = {"details": MAPPING, "context": MAPPING}
            parts = checked(content, kinds)
            context = parts["context"] or {}
            checked(context, OF_CONTEXT)
            details = {name: _details(of) for name, of in (parts["details"] or {}).items()}
            return {"numbers": check_numbers(numbers), "details": details, "context": context}
    except FileNotFoundError:
        return {}


def _details(content: object) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError("details of a number are no mapping of names")
    found = checked(content, OF_NUMBER)
    empty = {"error": None, "error_kind": "", "reason": "", "context": {}}
    return {name: empty[name] if value is None else value for name, value in found.items()}


def configuration(path: Path) -> dict[str, Any]:
    """The resolved configuration of a run, a model in it.

    Raises DataError where there is none, or it is damaged; StorageError where it cannot be read.
    """
    try:
        with naming(path):
            content = _yaml(path)
    except FileNotFoundError:
        content = {}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(f"{path}: not the configuration of a run (no model in it)")
    with naming(path):
        checked(content, {"seed": (int, type(None)), "provenance": MAPPING})
        provenance = content.get("provenance") or {}
        checked(provenance, OF_PROVENANCE)
        check_texts(provenance.get("overrides") or [], "provenance.overrides")
    return content


def _yaml(path: Path) -> object:
    try:
        return plain_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
