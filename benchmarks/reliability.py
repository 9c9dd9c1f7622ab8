"""The figures of docs/reliability.md that `make soak` does not give.

Saving, damage, signals, W&B out of reach.

python benchmarks/reliability.py
"""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from src.rundir.checkpoint_io import AtomicCheckpointIO  # noqa: E402
from src.rundir.store import CheckpointStore, damage  # noqa: E402

COMMAND = [sys.executable, "-m", "src.train", "callback.generation=null", "callback.grid=null"]


def seconds(work: Callable[[], None]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def saving(folder: Path) -> None:
    """Median of 20 saves, ours and torch's with fsync in turn; then the time to verify the file."""
    content = {
        "state_dict": {f"layer{i}": torch.randn(1024, 1024) for i in range(64)},
        "global_step": 1,
    }
    path, plain, own = folder / "step-00000001.ckpt", folder / "plain.ckpt", AtomicCheckpointIO({})

    def peer() -> None:
        torch.save(content, plain)
        with open(plain, "rb") as file:
            os.fsync(file.fileno())

    times = [
        (seconds(peer), seconds(lambda: own.save_checkpoint(content, path))) for _ in range(20)
    ]
    theirs, ours = (statistics.median(kind) for kind in zip(*times, strict=True))
    verify = seconds(lambda: damage(path))
    print(
        f"save 268 MB: torch.save + fsync {theirs:.3f} s, ours {ours:.3f} s "
        f"(x {ours / theirs:.2f}), verify {verify:.3f} s"
    )


def damaged(folder: Path, num: int = 200) -> None:
    """Flip a bit at ``num`` random places of a file, one after the other."""
    path, draw = folder / "step-00000002.ckpt", random.Random(0)
    AtomicCheckpointIO({}).save_checkpoint({"state_dict": {"w": torch.randn(512, 512)}}, path)
    whole, tensor = path.read_bytes(), torch.load(path, weights_only=True)["state_dict"]["w"]
    accepted = harmful = 0
    for _ in range(num):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        if not damage(path):
            accepted += 1
            harmful += not torch.equal(
                torch.load(path, weights_only=True)["state_dict"]["w"], tensor
            )
    for size in (0, 1, len(whole) // 2, len(whole) * 999 // 1000):
        path.write_bytes(whole[:size])
        accepted += not damage(path)
    print(f"damage: {accepted} of {num + 4} accepted, {harmful} of them with other weights")


def terminated(folder: Path) -> None:
    """From SIGTERM in the middle of the default training to the end of the process."""
    run_dir = folder / "terminated"
    words = ["logger=csv", "callback.checkpoint.every_steps=5", f"hydra.run.dir={run_dir}"]
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not CheckpointStore(run_dir / "checkpoints").candidates():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    taken = seconds(process.wait)
    print(f"SIGTERM: exit code {process.returncode} after {taken:.2f} s")


def without_wandb(folder: Path) -> None:
    """A short run that logs to a server which never answers, against one that logs to files."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        online = os.environ | {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "0" * 40,
        }
        times = []
        for logger, environment in (("csv", os.environ), ("[csv,wandb]", online)):
            words = [
                *COMMAND,
                "model=vae",
                "trainer.max_steps=2",
                f"logger={logger}",
                f"hydra.run.dir={folder / logger}",
            ]
            run = partial(subprocess.run, words, cwd=ROOT, env=environment, capture_output=True)
            times.append(seconds(run))
    print(f"W&B out of reach: {times[1]:.1f} s instead of {times[0]:.1f} s for the whole run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as place:
        for measure in (saving, damaged, terminated, without_wandb):
            measure(Path(place))
