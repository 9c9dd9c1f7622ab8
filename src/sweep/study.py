"""The trials of a study as its drivers see them: each is run by one driver at a time, and none is lost with one."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from src.errors import ConfigError
from src.files import write_text
from src.rundir import lock
from src.sweep.space import Space
from src.sweep.storage import open_storage

log = logging.getLogger(__name__)

DRIVERS = ".drivers"
PLACE = ".study"  # in the sweep directory: a word that the study knows as well
OWNER = "driver"  # the attribute of a trial that names the directory which its driver locks


class Trials:
    """Hands out the trials of one study and takes their results; several drivers may do so at once.

    name, storage: of the study, see ``open_storage``; objectives: name -> ``minimize`` or ``maximize``; settings: what
    all jobs are given; folder: the sweep directory, shared by all drivers. A trial belongs to the driver that asked for
    it for as long as that process lives; then it goes back to the queue, with its number and its parameters, so its job
    goes on where it was. Raises ConfigError where the study exists with another space, other objectives, settings or
    another directory.
    """

    def __init__(
        self,
        name: str,
        storage: str | None,
        objectives: Mapping[str, str],
        space: Space,
        settings: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.space, self.folder = space, folder
        self.driver = folder / DRIVERS / f"{socket.gethostname()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        self._alone = FileLock(folder / f"{DRIVERS}.lock")  # one driver at a time judges and asks
        with self._alone:
            self.study = optuna.create_study(
                study_name=name,
                storage=open_storage(storage, folder),
                directions=list(objectives.values()),
                load_if_exists=True,
            )
            self._check_place()
            self._check_same(objectives, settings)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold this driver's lock for the duration of the block."""
        with ExitStack() as stack:
            with self._alone:
                self.driver.mkdir(parents=True, exist_ok=True)
                stack.callback(shutil.rmtree, self.driver, ignore_errors=True)
                stack.enter_context(lock.locked(self.driver))
                for other in self.driver.parent.iterdir():
                    if not lock.held(other):  # killed; its trials are free
                        shutil.rmtree(other, ignore_errors=True)
            yield

    def take(self, most: int, total: int, sampler: Callable[[int], BaseSampler]) -> list[Trial]:
        """Up to ``most`` trials to run now: queued ones, then new ones until the study has ``total``.

        sampler: makes one from the number of trials that there are.
        """
        with self._alone:
            for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if not self.has_driver(trial):
                    log.warning("trial %d: its driver is gone, queued again", trial.number)
                    self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            known = self.study.get_trials(deepcopy=False)
            waiting = sum(trial.state == TrialState.WAITING for trial in known)
            self.study.sampler = sampler(len(known))
            taken = []
            for _ in range(min(most, waiting + max(0, total - len(known)))):
                taken.append(self.study.ask(self.space))
                taken[-1].set_user_attr(OWNER, str(self.driver))
            return sorted(taken, key=lambda trial: trial.number)

    def finish(
        self, trial: Trial, state: TrialState, values: Sequence[float] | None = None
    ) -> None:
        """Store how a trial ended."""
        self.study.tell(trial, values, state)

    def directory(self, number: int) -> Path | None:
        """The run directory of a trial's job, where there is one."""
        return next(iter(sorted(self.folder.glob(f"{number}-*/"))), None)

    def has_driver(self, trial: FrozenTrial) -> bool:
        """Whether a process that lives, or may live on another machine, runs the trial."""
        return OWNER in trial.user_attrs and lock.held(Path(trial.user_attrs[OWNER]))

    def _check_place(self) -> None:
        """Raise ConfigError where the study is kept by drivers in another directory: they could not see each other."""
        mark = self.folder / PLACE
        there = self.study.user_attrs.get("place")
        if there is None:
            there = secrets.token_hex(8)
            write_text(mark, there)
            self.study.set_user_attr("place", there)
        elif not mark.exists() or mark.read_text() != there:
            why = f"is kept with another sweep directory than hydra.sweep.dir={self.folder}"
            raise ConfigError(
                f"sweep.study={self.study.study_name}: {why}; all drivers must share one"
            )

    def _check_same(self, objectives: Mapping[str, str], settings: Mapping[str, str]) -> None:
        """Record what the study is about, or hold it against what was recorded."""
        mine = {key: json.loads(distribution_to_json(of)) for key, of in self.space.items()}
        mine = {"space": mine, "objectives": dict(objectives), "settings": dict(settings)}
        theirs = self.study.user_attrs.get("about")
        if theirs is None:
            self.study.set_user_attr("about", mine)
            return
        theirs = mine | theirs
        changes = [
            f"{key}: {_shown(theirs[part].get(key))} there, {_shown(mine[part].get(key))} here"
            for part in mine
            for key in sorted(theirs[part].keys() | mine[part].keys())
            if theirs[part].get(key) != mine[part].get(key)
        ]
        if changes:
            what = f"the study exists with another search space, objective or setting ({'; '.join(changes)})"
            advice = "give this one a name of its own, sweep.study=NAME, or go on with the settings of the study"
            raise ConfigError(f"sweep.study={self.study.study_name}: {what}; {advice}")

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front; [] where none is complete."""
        return self.study.best_trials if self.complete() else []

    def complete(self) -> list[FrozenTrial]:
        """Trials with a result."""
        return self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])

    @property
    def minimized(self) -> list[bool]:
        """Of each objective."""
        return [direction == StudyDirection.MINIMIZE for direction in self.study.directions]


def _shown(value: object) -> str:
    """A distribution as one would write it, a direction as it is."""
    if not isinstance(value, dict):
        return "nothing" if value is None else str(value)
    return ", ".join(
        f"{key}={of}" for key, of in value["attributes"].items() if of not in (None, False)
    )
