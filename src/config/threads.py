"""OpenMP's threads: how many a process has and how they wait, chosen before torch is imported.

By itself the library starts a thread for each core, whatever the quota of a container or another
job leaves of it, and a thread that waits for the others spins. Where a core is shared that keeps
the others from it: a step takes many times as long. What the user has set stays.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath

NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # torch follows either
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# of GNU's library, which torch brings along, and of LLVM's and Intel's: docs/decisions.md has why
BRIEFLY = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
CORES = "LOKY_MAX_CPU_COUNT"  # joblib's name for the cores that are left to a process
FROM_OUTSIDE = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")  # ranks that were given their share
CGROUPS = Path("/sys/fs/cgroup")

_chosen: dict[str, str] = {}  # by this process; all else is from the environment that it got


def choose_threads(ranks: int = 1) -> None:
    """Set what the environment leaves open, where torch has not read it yet.

    ranks: processes of this run on this machine, which share the cores.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in WAITING):
        _chosen.update(BRIEFLY)
    share = usable_cores()
    if not any(name in os.environ for name in FROM_OUTSIDE):
        share = max(1, share // max(1, ranks))
    if share < _bound_cores() and not any(name in os.environ for name in NUMBER):
        _chosen["OMP_NUM_THREADS"] = str(share)
    os.environ.update(_chosen)


def usable_cores() -> int:
    """Cores of this process: bound to by affinity, by the quota of its cgroup, left to its job."""
    left = os.environ.get(CORES, "")
    limit = int(left) if left.isdecimal() else math.inf
    return max(1, math.ceil(min(_bound_cores(), cpu_quota(), limit)))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that the cgroup of this process and those around it may use, or inf.

    Arguments:
        cgroups: where they are mounted.
        own: a line ``number:controllers:path`` for each; version 2 names no controllers.
    """
    quotas = [math.inf]
    with suppress(OSError):  # not Linux
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mounted = cgroups / "cpu" if controllers else cgroups
            path = PurePosixPath(name)
            quotas += [_quota(mounted / part.relative_to("/")) for part in (path, *path.parents)]
    return min(quotas)


def threads_in_words(number: int) -> str:
    """``number`` threads, the cores there are for them, how they wait, and who has said so."""
    usable, cores = usable_cores(), os.cpu_count()
    of = f"{cores} cores" if usable == cores else f"{usable} usable cores, of {cores}"
    parts = [f"{number} of {of}"]
    waiting = [f"{name}={_chosen[name]}" for name in WAITING if name in _chosen]
    if waiting:
        parts.append(f"those that wait soon sleep ({', '.join(waiting)})")
    given = [name for name in (*NUMBER, *WAITING) if name in os.environ and name not in _chosen]
    if given:
        listed = ", ".join(f"{name}={os.environ[name]}" for name in given)
        parts.append(f"from the environment: {listed}")
    return "; ".join(parts)


def _bound_cores() -> int:
    """Those that OpenMP sees: of the affinity where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(group: Path) -> float:
    """The quota of one cgroup, of version 2 or 1; inf where it has none."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = (
            int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else math.inf
    return math.inf
