"""What the tests of sweeps share: configurations, a launcher whose jobs take no time, studies."""

import json

import optuna
import yaml
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from src.launch.job import Job, JobFailed, available
from src.sweep.storage import open_storage
from src.sweep.sweeper import sweep

SPACE = ("optimizer.lr=interval(0.1,1)", "model.latent_dim=range(1,9)")


def composed(*words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(words), return_hydra_config=True)


class Launcher:
    """Stands in for the launcher.

    A job writes its metrics at once, fails, is stopped, or takes the driver with it.
    """

    def __init__(
        self,
        folder,
        fails=(),
        stops=(),
        dies=(),
        refuses=(),
        metrics=lambda values: {"val/loss": values["optimizer.lr"]},
    ):
        self.folder, self.fails, self.stops, self.dies, self.metrics = (
            folder,
            fails,
            stops,
            dies,
            metrics,
        )
        self.refuses = refuses
        self.jobs, self.batches, self.sweep_dir, self.at_once = {}, [], folder, 1

    def job(self, number, words):
        if number in self.refuses:
            raise HydraException("no such thing")
        return Job(number, words, self.folder / f"{number}-vae-digits", "val/loss")

    def run(self, jobs, ended):
        while batch := available(self._unfinished(jobs, ended)):
            self.batches.append([job.number for job in batch])
            for job in batch:
                self._work(job)
                ended(job)

    def _unfinished(self, jobs, ended):
        for job in jobs:
            if job is not None and job.is_finished():
                ended(job)
            else:
                yield job

    def _work(self, job):
        values = {
            key: yaml.safe_load(value)
            for key, value in (word.split("=", 1) for word in job.overrides)
        }
        assert values["sweep.trial"] == job.number
        self.jobs[job.number] = values
        if job.number in self.dies:
            raise KeyboardInterrupt
        if job.number not in (*self.fails, *self.stops):
            job.run_dir.mkdir(exist_ok=True)
            with open(job.run_dir / "starts", "a") as starts:
                starts.write("x")
            (job.run_dir / "metrics.json").write_text(json.dumps(self.metrics(values)))
        job.settle(143 if job.number in self.stops else 6 * (job.number in self.fails))


def run_study(folder, *words, space=SPACE, name="study", **behaviour):
    """Run a study with the stand-in; returns it, the study, and what ended the driver, if any."""
    launcher = Launcher(folder, **behaviour)
    typed = [f"sweep={name}", "model=vae", f"hydra.sweep.dir={folder}", *words]
    config = composed(*typed)
    launcher.at_once = config.hydra.launcher.jobs or 1
    error = None
    try:
        sweep(
            config, launcher, [*(word for word in typed if not word.startswith("hydra.")), *space]
        )
    except (JobFailed, KeyboardInterrupt) as ended:
        error = ended
    study = optuna.load_study(
        study_name=config.sweep.study, storage=open_storage(config.sweep.storage, folder)
    )
    return launcher, study, error
