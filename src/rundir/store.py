"""The checkpoints of one run: numbered files, and a pointer to the newest good one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from src.errors import StorageError
from src.files import atomic_path, open_regular, write_json
from src.foreign import checked, read_json
from src.rundir.archive import damage_within

POINTER = "latest.json"
LAST = "last.ckpt"  # another name of the file that the pointer names
NAMED = re.compile(r"(step|best)-(\d{8,18})\.ckpt", re.ASCII)  # as this project writes them
# what only the run itself writes, so who has its lock knows that nobody is at it
LEFTOVER = re.compile(r"\.((step|best)-\d{8,}\.ckpt|last\.ckpt|latest\.json)\.\w{8}\.tmp", re.ASCII)


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint file belongs to, or the folder that it lies in."""
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def damage(path: Path) -> str:
    """What is wrong with a checkpoint file, or "": torch never verifies its checksums."""
    try:
        with open_regular(path) as file:
            return damage_within(file)
    except FileNotFoundError:
        return "missing"
    except ValueError as error:
        return str(error)


class CheckpointStore:
    """``step-<step>.ckpt`` in a directory; a file counts from when ``latest.json`` names it.

    The pointer goes by the step that the file holds, never by times of files, which copies and
    clocks change. keep: how many files stay; if the newest is damaged, only the steps since the
    previous one are lost.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def path(self, step: int, kind: str = "step") -> Path:
        """Where the checkpoint of a step belongs."""
        return self.directory / f"{kind}-{step:08d}.ckpt"

    def candidates(self) -> list[Path]:
        """Checkpoints to go on from, newest first; all where the pointer cannot be read."""
        alone = self.directory / LAST
        if not (self.directory / POINTER).exists():  # nothing published, or a copy of the one file
            return [alone] if alone.exists() else []
        latest = self._latest()
        return [
            self.path(step)
            for step in sorted(self.steps(), reverse=True)
            if latest is None or step <= latest
        ]

    def publish(self, path: Path, best: Path | None = None) -> None:
        """Verify the file, make it the newest, and only then delete what is too old.

        So goes what is of a later step: it was abandoned. best: another name of this file, if it is
        the best so far; then those before it go. Raises StorageError when what was written reads
        back damaged; the pointer then stays where it was.
        """
        found = damage(path)
        if found:
            raise StorageError(
                f"{path}: reads back damaged ({found}); the checkpoint before it is kept"
            )
        step = int(NAMED.fullmatch(path.name)[2])
        write_json(self.directory / POINTER, {"file": path.name, "step": step})
        alias(path, self.directory / LAST)
        steps = self.steps()
        until = sorted((other for other in steps if other <= step), reverse=True)
        for other in set(steps) - set(until[: self.keep]):
            self.path(other).unlink(missing_ok=True)
        if best:
            for other in set(self.steps("best")) - {int(NAMED.fullmatch(best.name)[2])}:
                self.path(other, "best").unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove checkpoints that killed processes of this run have left half-written.

        Whoever calls it holds the lock of the run. Other temporary files may be of evaluations that
        go on, or of anybody.
        """
        for path in self.directory.glob(".*.tmp"):
            if LEFTOVER.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)

    def steps(self, kind: str = "step") -> list[int]:
        """Of all checkpoints of a kind; ``best-mine.ckpt`` is the user's, and none of them."""
        names = (NAMED.fullmatch(path.name) for path in self.directory.glob(f"{kind}-*.ckpt"))
        return [int(name[2]) for name in names if name]

    def _latest(self) -> int | None:
        try:
            return checked(read_json(self.directory / POINTER), {"step": (int,)})["step"]
        except (OSError, ValueError):
            return None


def alias(path: Path, target: Path) -> None:
    """Let ``target`` be a second name of the file, replacing what it was."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
