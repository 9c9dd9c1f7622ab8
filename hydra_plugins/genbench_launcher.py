"""Hydra accepts plugins from a package of this name alone; the code is in ``src/launch``."""

from __future__ import annotations

from src.launch.launcher import JobLauncher


class Launcher(JobLauncher):
    """The launcher of ``conf/launcher``."""
