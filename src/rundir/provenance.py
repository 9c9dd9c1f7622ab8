"""Where a run came from: its resolved configuration, the version that ran, the command line."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from src.config.command import typed_overrides
from src.config.ownership import signed
from src.config.references import recorded
from src.config.secrecy import refuse_recorded
from src.config.threads import threads_in_words

ROOT = Path(__file__).resolve().parents[2]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values; what is one reference and nothing else stays one.

    With ``provenance``: version, commit, command line, threads, this user's signature. Raises
    ConfigError where a secret would be recorded.
    """
    full = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    refuse_recorded(full)
    content = recorded(OmegaConf.to_container(cfg, resolve=False), full)
    provenance = {
        "version": _version(),
        "git": _commit(),
        "overrides": typed_overrides(),
        "threads": threads_in_words(torch.get_num_threads()),
    }
    return signed(content | {"provenance": provenance})


def _version() -> str:
    try:
        return version("genbench")
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """Commit of the working tree, with ``+`` where files differ; None outside a repository."""
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit


def _git(*words: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()
