"""A loader whose workers have started, or that says why not."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from src.errors import WorkerLostError, first_line

JOIN = 5.0  # seconds for a worker that was killed


class Loader(DataLoader):
    """Torch's loader; where not all its workers can be started, those that were are ended.

    They are deaf to SIGTERM, as the training answers signals (``leave_signals_to_parent``), and
    with it to what Python sends them at its end, where it would wait for ever: that is done here
    too. Raises WorkerLostError.
    """

    def __iter__(self) -> Iterator:
        if not self.num_workers:
            return super().__iter__()
        atexit.unregister(_end_all)
        atexit.register(_end_all)  # before multiprocessing's own
        before = active_children()
        try:
            return super().__iter__()
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and "can't start new thread" not in str(error):
                raise
            _end([worker for worker in active_children() if worker not in before])
            _forget(error)
            reason = getattr(error, "strerror", None) or first_line(error)
            advice = "lower it, or raise the limits of this shell (ulimit -n, ulimit -u)"
            why = f"its data workers cannot be started ({reason})"
            raise WorkerLostError(
                f"dataset.num_workers={self.num_workers}: {why}; {advice}"
            ) from error


def _end(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join(JOIN)


def _end_all() -> None:
    """At the end of this process: whatever ended it, its workers have nothing left to do."""
    workers = [child for child in active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report them as lost
        _end(workers)


def _forget(error: BaseException) -> None:
    """Have torch's half-made iterator end nothing: it would print that it has no workers."""
    traceback = error.__traceback__
    while traceback is not None:
        made = traceback.tb_frame.f_locals.get("self")
        if isinstance(made, _BaseDataLoaderIter):
            made._shutdown = True
        traceback = traceback.tb_next
