"""The trials of a study, shared by its drivers: each is run by one, and none is lost with one."""

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
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from src.errors import ConfigError
from src.files import write_text
from src.foreign import read_text
from src.report.study import complete
from src.rundir import lock
from src.sweep.space import Space
from src.sweep.storage import open_storage

log = logging.getLogger(__name__)

DRIVERS = ".drivers"
PLACE = ".study"  # in the sweep directory: a token that is stored in the study as well
OWNER = "driver"  # the attribute of a trial that names the directory which its driver locks


class Trials:
    """Hands out the trials of one study and takes their results; several drivers may do so at once.

    A trial belongs to the driver that took it for as long as that process lives; then it goes back
    to the queue, with its number and its parameters, so its job goes on where it was. Raises
    ConfigError where the study exists with another space, other objectives, settings or another
    directory.

    Arguments:
        name: of the study.
        storage: see ``open_storage``.
        objectives: name -> ``minimize`` or ``maximize``.
        space: what is searched.
        settings: the overrides that all jobs get.
        folder: the sweep directory, shared by all drivers.
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
        self.space = space
        self.folder = folder
        self.driver = folder / DRIVERS / f"{socket.gethostname()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        # one driver at a time looks at the trials and takes some
        self._alone = lock.brief_lock(folder / f"{DRIVERS}.lock")
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
        """Trials to run now: queued ones, then new ones.

        Arguments:
            most: how many at most.
            total: how many the study gets in all.
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
            new = max(0, total - len(known))
            taken = []
            for _ in range(min(most, waiting + new)):
                trial = self.study.ask(self.space)
                trial.set_user_attr(OWNER, str(self.driver))
                taken.append(trial)
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
        """Raise ConfigError where other drivers of the study use another sweep directory.

        They could not see each other's locks.
        """
        mark = self.folder / PLACE
        there = self.study.user_attrs.get("place")
        if there is None:
            there = secrets.token_hex(8)
            write_text(mark, there)
            self.study.set_user_attr("place", there)
        elif _content(mark) != there:
            why = f"is kept with another sweep directory than hydra.sweep.dir={self.folder}"
            name = self.study.study_name
            raise ConfigError(f"sweep.study={name}: {why}; all drivers must share one")

    def _check_same(self, objectives: Mapping[str, str], settings: Mapping[str, str]) -> None:
        """Record space, objectives and settings, or compare them with the recorded ones."""
        space = {key: json.loads(distribution_to_json(of)) for key, of in self.space.items()}
        mine = {"space": space, "objectives": dict(objectives), "settings": dict(settings)}
        theirs = self.study.user_attrs.get("about")
        if theirs is None:
            self.study.set_user_attr("about", mine)
            return
        changes = []
        for part, here in mine.items():
            changes += _changes(theirs.get(part, here), here)
        if changes:
            what = "the study exists with another search space, objective or setting"
            advice = (
                "give this one a name of its own, sweep.study=NAME, "
                "or go on with the settings of the study"
            )
            where = f"sweep.study={self.study.study_name}"
            raise ConfigError(f"{where}: {what} ({'; '.join(changes)}); {advice}")

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front; [] where none is complete."""
        return self.study.best_trials if complete(self.study) else []


def _content(mark: Path) -> str | None:
    """What the sweep directory says which study it belongs to; None where it says nothing."""
    try:
        return read_text(mark, most=64)
    except (OSError, ValueError):
        return None


def _changes(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """What differs, one key an entry."""
    changes = []
    for key in sorted(there.keys() | here.keys()):
        old = there.get(key)
        new = here.get(key)
        if old != new:
            changes.append(f"{key}: {_shown(old)} there, {_shown(new)} here")
    return changes


def _shown(value: object) -> str:
    """A distribution as one would write it, a direction as it is."""
    if value is None:
        return "nothing"
    if not isinstance(value, dict):
        return str(value)
    attributes = value["attributes"].items()
    return ", ".join(f"{key}={of}" for key, of in attributes if of not in (None, False))
