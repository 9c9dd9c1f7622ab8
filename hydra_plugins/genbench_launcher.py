"""The launcher of ``conf/launcher``; the work is done by ``src/launch``.

As in ``genbench_sweeper``, which says why: nothing of this program is imported here.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Launcher(HydraLauncher):
    """Hands over to ``jobs``, a JobLauncher."""

    def __init__(self, backend: str, **settings: Any) -> None:  # noqa: ANN401
        self.settings = {"backend": backend, **settings}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher of jobs."""
        from src.config.quick import collect_garbage
        from src.launch.launcher import JobLauncher

        collect_garbage()  # a driver works for hours
        self.jobs = JobLauncher(**self.settings)
        self.jobs.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs of Hydra's own sweeper."""
        return self.jobs.launch(job_overrides, initial_job_idx)
