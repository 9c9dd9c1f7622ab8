"""The sweeper of ``sweep=<name>``; the work is done by ``src/sweep``.

Hydra takes plugins from this package alone. Every start of the program reads this file: nothing
else may be imported here. No ``from __future__ import annotations`` either: Hydra runs plugin
modules outside of ``sys.modules``, where dataclasses would fail over it.
"""

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Runs the study that ``cfg.sweep`` describes with whatever launcher is chosen."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch jobs until the study has all its trials."""
        from src.sweep.sweeper import sweep

        jobs = getattr(self.launcher, "jobs", None)  # a launcher that is not ours is refused
        sweep(self.config, jobs, arguments)
