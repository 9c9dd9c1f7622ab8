"""Checks of plain files for pre-commit and the test suite: white space, size, YAML that parses."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

LARGEST = 500 * 1024  # bytes


def problems(path: Path) -> list[str]:
    """What is wrong with a file, one line each."""
    data = path.read_bytes()
    found = [f"{path}: {len(data)} bytes, more than {LARGEST}"] if len(data) > LARGEST else []
    if b"\0" in data:
        return found
    text = data.decode("utf-8")
    for number, line in enumerate(text.split("\n"), 1):
        if line != line.rstrip():
            found.append(f"{path}:{number}: white space at the end of the line")
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        found.append(f"{path}: must end with exactly one newline")
    if path.suffix in (".yaml", ".yml"):
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            found.append(f"{path}: not YAML: {error}")
    return found


if __name__ == "__main__":
    lines = [line for name in sys.argv[1:] for line in problems(Path(name))]
    print("\n".join(lines))
    sys.exit(bool(lines))
