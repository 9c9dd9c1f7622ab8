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
STEP = re.compile(r"step-([0-9]{1,18})\.ckpt")


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
            for step in sorted(self._steps(), reverse=True)
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
        step = int(STEP.fullmatch(path.name)[1])
        write_json(self.directory / POINTER, {"file": path.name, "step": step})
        alias(path, self.directory / LAST)
        steps = self._steps()
        until = sorted((other for other in steps if other <= step), reverse=True)
        for other in set(steps) - set(until[: self.keep]):
            self.path(other).unlink(missing_ok=True)
        if best:
            for other in set(self.directory.glob("best-*.ckpt")) - {best}:
                other.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what killed processes have left half-written anywhere in the run."""
        for leftover in self.directory.parent.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _steps(self) -> list[int]:
        names = (STEP.fullmatch(path.name) for path in self.directory.glob("step-*.ckpt"))
        return [int(name[1]) for name in names if name]

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
