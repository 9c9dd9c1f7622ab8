"""src/files.py: what is read of directories that others have filled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from src.files import read_regular


def test_read_regular_gives_files_of_the_size_that_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(ValueError, match="has more than 4 bytes"):
        read_regular(file, 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)


def test_read_regular_refuses_links_pipes_devices_and_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"private")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "broken").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in ("link", "broken"):
        with pytest.raises(ValueError, match="is a link"):
            read_regular(tmp_path / path, 100)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="a directory, a device or a pipe"):
            read_regular(path, 100)
