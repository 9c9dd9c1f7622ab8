"""What a target takes, read from its source: nothing is imported, so the answer is there at once.

A refusal of a misspelt setting need not wait for torch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DEPTH = 8  # modules that pass a name on, and classes that inherit a constructor


@cache
def parameters_of(target: str) -> list[str] | None:
    """Names of what ``target`` (``src.model.vae.VAE``) takes.

    None where the source does not say: it is not found, takes anything (``**kwargs``), or is made
    in a way that is not looked through.
    """
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        file = _file_of(module)
        if file is not None:
            whole = end == len(parts) - 1  # else a method, or what a class holds
            return _parameters(module, parts[end], DEPTH) if whole else None
    return None


def _file_of(module: str) -> Path | None:
    """The source of a module, where it is found as Python itself would find it on a plain path."""
    place = Path(*module.split("."))
    for root in sys.path:
        for file in (Path(root, place, "__init__.py"), Path(root, place).with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _parameters(module: str, name: str, depth: int) -> list[str] | None:
    file = _file_of(module)
    if file is None or depth == 0:
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _of_function(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node, module, depth)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _parameters(_imported_from(node, module, file), alias.name, depth - 1)
    return None


def _imported_from(node: ast.ImportFrom, module: str, file: Path) -> str:
    """The module of ``from ..x import y``, absolute."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    above = node.level - (file.name == "__init__.py")
    kept = package[: len(package) - above] if above else package
    return ".".join([*kept, *filter(None, [node.module])])


def _of_function(node: ast.FunctionDef) -> list[str] | None:
    arguments = node.args
    if arguments.kwarg is not None:
        return None
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [one.arg for one in every]


def _of_class(node: ast.ClassDef, module: str, depth: int) -> list[str] | None:
    """Of its constructor, of its fields (a dataclass or named tuple), or of its one base."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            found = _of_function(item)
            return None if found is None else found[1:]
    made = {*_names(node.decorator_list), *_names(node.bases)} & {"dataclass", "NamedTuple"}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    if made and len(bases) == ("NamedTuple" in made):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return [field.target.id for field in fields if isinstance(field.target, ast.Name)]
    if made or len(bases) != 1 or len(node.bases) != 1:
        return None
    return _parameters(module, bases[0], depth - 1)


def _names(nodes: list[ast.expr]) -> Iterator[str]:
    """``dataclass`` of ``@dataclass`` and of ``@dataclass(frozen=True)``."""
    for node in nodes:
        called = node.func if isinstance(node, ast.Call) else node
        if isinstance(called, ast.Name):
            yield called.id
