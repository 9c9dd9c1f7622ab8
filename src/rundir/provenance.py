"""Where a run came from: its resolved configuration, the version that ran, the command line."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.command import typed_overrides

ROOT = Path(__file__).resolve().parents[2]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, with the version that ran and the command line."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return content | {
        "provenance": {"version": _version(), "git": _git_hash(), "overrides": typed_overrides()}
    }


def _version() -> str:
    try:
        return version("genbench")
    except PackageNotFoundError:
        return "not installed"


def _git_hash() -> str | None:
    """Commit of the working tree, marked ``+`` where files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT)]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, env=environment
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
