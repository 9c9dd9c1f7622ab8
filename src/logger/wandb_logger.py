"""The W&B run of a run: a row per optimiser step, resumed with the run, never stopping it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.errors import first_line
from src.files import read_regular, write_json
from src.logger.wandb_file import last_row
from src.logger.wandb_import import import_wandb
from src.rundir.history import History

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

TIMEOUT = 15  # seconds that a server which does not answer costs, at the start and at the end
ID_FILE = "wandb.json"
MAX_ID = 4096  # bytes of it
X_AXIS = "trainer/global_step"


def wandb_logger(save_dir: str, project: str, **settings: Any) -> WandbRun:  # noqa: ANN401
    """W&B without prompts: online when logged in or by WANDB_MODE, else or if unreachable offline.

    Arguments:
        save_dir: where runs are kept (``<save_dir>/wandb``), and the id of this one
            (``wandb.json``), under which the next call goes on.
        project: of W&B.
        settings: passed on to ``wandb.init`` (entity, name, group, tags, id, ...).
    """
    if rank_zero_only.rank != 0:
        return WandbRun(project=project, save_dir=save_dir)
    os.makedirs(save_dir, exist_ok=True)
    settings["id"] = _run_id(Path(save_dir), settings.get("id"))
    run = _begin({"project": project, "dir": save_dir, "resume": "allow", **settings})
    return WandbRun(project=project, save_dir=save_dir, experiment=run)


class WandbRun(WandbLogger):
    """Logs to a W&B run that has begun. Row ``n`` (W&B's ``_step``) holds optimiser step ``n``.

    A row is sent as a whole, when the next begins or all has ended well: what a stopped run leaves
    incomplete is sent again, from metrics.csv, when it is resumed. So no step is in W&B twice, and
    none is missing.
    """

    _first = 0  # row that W&B takes next
    _at = -1  # the row that is being filled
    _row: Mapping[str, Any] = {}

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Write the configuration to W&B."""
        self.attempt(lambda run: run.config.update(params, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Put numbers into the row of optimiser step ``step``, counted from 0."""
        if step is not None and step > self._at:
            self._send(whole=True)
            self._at = step
        self._row = {**self._row, **metrics}

    @rank_zero_only
    def log_image(
        self,
        key: str,
        images: list[Any],
        step: int | None = None,
        **kwargs: Any,  # noqa: ANN401 (W&B's)
    ) -> None:
        """Put pictures of the state after ``step`` optimiser steps into the row of the last one."""
        if step is not None:
            step = max(0, step - 1)
        super().log_image(key, images, step=step, **kwargs)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send the last row where all went well; the test, for example, may add to it."""
        if status == "success":
            self._send(whole=False)

    @rank_zero_only
    def go_on(self, history: History, step: int) -> None:
        """Resume at ``step``: send W&B the rows that it lacks, if its process was killed."""
        self.attempt(self._find_first)
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (steps, values) in history.items():
            for at, value in zip(steps, values, strict=True):
                if self._first <= at < step:
                    rows[at][name] = value
        for at in sorted(rows):
            self.log_metrics(rows[at], at)

    def attempt(self, action: Callable[[Run], Any]) -> None:
        """Do something with the W&B run; where that fails, warn once and go on without W&B."""
        try:
            action(self.experiment)
        except Exception as error:  # whatever is wrong with W&B is no reason not to train
            advice = _advice(self.experiment)
            why = first_line(error)
            log.warning("W&B has failed (%s): no longer logging to it; %s", why, advice)
            self._experiment = _no_run()

    def _send(self, whole: bool) -> None:
        row = {**self._row, X_AXIS: self._at}
        is_new = self._row and self._at >= self._first
        self._row = {}
        if is_new:
            self.attempt(lambda run: run.log(row, step=self._at, commit=whole))

    def _find_first(self, run: Run) -> None:
        if run.offline:
            self._first = 1 + last_row(self.save_dir, run.id)
        else:
            self._first = run.starting_step


def close_wandb() -> None:
    """Finish the W&B run of this process, if any, so that a next run begins its own."""
    if "wandb" not in sys.modules:
        return
    run = sys.modules["wandb"].run
    if run is None:
        return
    try:
        run.finish(exit_code=1 if sys.exc_info()[0] else 0)
    except Exception as error:
        log.warning("W&B has not taken everything (%s): %s", first_line(error), _advice(run))
        _no_run().finish()
    _forget()  # only then are its files complete


def _run_id(save_dir: Path, asked: str | None) -> str:
    """The id of the W&B run: the one asked for, that of the earlier parts, or a new one.

    It is kept for the parts that follow.
    """
    path = save_dir / ID_FILE
    try:
        kept = json.loads(read_regular(path, MAX_ID))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = os.environ.get("WANDB_RUN_ID")  # set by W&B's own sweeps
    run_id = asked or kept or secrets.token_hex(4)
    write_json(path, {"id": run_id})
    return run_id


def _begin(settings: dict[str, Any]) -> Run:
    """Start the run: offline where there is no server, a dummy where W&B does not work at all."""
    import_wandb()
    import wandb

    limits = {"init_timeout": TIMEOUT, "finish_timeout": TIMEOUT}
    waiting = wandb.Settings(**limits, finish_timeout_raises=True)
    problem = ""
    for mode in dict.fromkeys((_mode(), "offline")):
        try:
            run = wandb.init(mode=mode, settings=waiting, **settings)
            run.define_metric(X_AXIS)
            run.define_metric("*", step_metric=X_AXIS)
        except Exception as error:
            problem = first_line(error)
            _forget()
            continue
        if problem:
            what = "W&B cannot be reached or used"
            log.warning("%s (%s): logging offline; %s", what, problem, _advice(run))
        return run
    log.warning("W&B cannot be used (%s): this run is not logged to it", problem)
    return _no_run()


def _mode() -> str:
    """WANDB_MODE where it is one that W&B knows, else online for those who are logged in."""
    import wandb

    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline", "disabled"):
        return asked
    if asked:
        log.warning("WANDB_MODE=%s: must be online, offline or disabled; ignored", asked)
    os.environ.pop("WANDB_MODE", None)
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception as error:
        log.warning("W&B login: %s", first_line(error))
        os.environ.pop("WANDB_API_KEY", None)
        return "offline"


def _advice(run: Run) -> str:
    online = "" if run.offline else "--include-online "
    folder = shlex.quote(str(Path(run.dir).parent))
    return f"upload what it holds with `wandb sync {online}{folder}`"


def _no_run() -> Run:
    """A W&B run that does nothing, in the place of one whose process is lost."""
    import wandb

    _forget()
    return wandb.init(mode="disabled")


def _forget() -> None:
    """End W&B's process, even if it hangs or is dead already; the next run starts another."""
    import wandb

    with suppress(Exception):
        wandb.teardown()
