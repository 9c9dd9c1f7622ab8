"""What the tests of sweeps share: composed configurations, a launcher whose jobs take no time, a study of it."""

import json
import time
from pathlib import Path

import optuna
import yaml
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus

from src.launch.job import JobFailed
from src.sweep.storage import open_storage
from src.sweep.sweeper import sweep

SPACE = ("optimizer.lr=interval(0.1,1)", "model.latent_dim=range(1,9)")


def composed(*words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(words), return_hydra_config=True)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Launcher:
    """Stands in for the launcher: a job writes its metrics at once, fails, or takes the driver with it."""

    def __init__(self, folder, fails=(), dies=(), metrics=lambda values: {"val/loss": values["optimizer.lr"]}):
        self.folder, self.fails, self.dies, self.metrics = folder, fails, dies, metrics
        self.jobs, self.batches = {}, []

    def launch(self, job_overrides, initial_job_idx):
        numbers = [initial_job_idx + k for k in range(len(job_overrides))]
        self.batches.append(numbers)
        return [self.job(number, words) for number, words in zip(numbers, job_overrides, strict=True)]

    def job(self, number, words):
        values = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}
        assert values["sweep.trial"] == number
        self.jobs[number] = values
        if number in self.dies:
            raise KeyboardInterrupt
        result = JobReturn(overrides=words, working_dir=str(self.folder / f"{number}-vae-digits"))
        if number in self.fails:
            result.status, result.return_value = JobStatus.FAILED, JobFailed(f"job {number} failed", 6)
            return result
        Path(result.working_dir).mkdir(exist_ok=True)
        with open(Path(result.working_dir) / "starts", "a") as starts:
            starts.write("x")
        (Path(result.working_dir) / "metrics.json").write_text(json.dumps(self.metrics(values)))
        result.status = JobStatus.COMPLETED
        return result


def run_study(folder, *words, space=SPACE, name="study", **behaviour):
    """Run a study with the stand-in; returns it, the study, and what ended the driver, if anything did."""
    launcher = Launcher(folder, **behaviour)
    typed = [f"sweep={name}", "model=vae", f"hydra.sweep.dir={folder}", *words]
    config = composed(*typed)
    error = None
    try:
        sweep(config, launcher, [*(word for word in typed if not word.startswith("hydra.")), *space])
    except (JobFailed, KeyboardInterrupt) as ended:
        error = ended
    study = optuna.load_study(study_name=config.sweep.study, storage=open_storage(config.sweep.storage, folder))
    return launcher, study, error
