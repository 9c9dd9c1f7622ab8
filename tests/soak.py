"""A long run under random faults, which must end with the bits of one that nothing happened to.

python tests/soak.py --faults 200 --steps 2000     (make soak)
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from faults import WHERE  # noqa: E402
from runs import content, differences, fault, timeless  # noqa: E402
from zygote import Zygote  # noqa: E402

from src.rundir.history import read_history  # noqa: E402
from src.rundir.store import CheckpointStore, damage  # noqa: E402

RUN = (
    *(
        "model=ddpm",
        "trusted_packages=[faults]",
        "network=mlp",
        "network.hidden=32",
        "schedule.num_timesteps=20",
        "sampler.num_steps=5",
        "logger=csv",
    ),
    *(
        "callback.generation=null",
        "callback.grid=null",
        "dataset.global_batch_size=64",
        "dataset.flip=true",
    ),
    *(
        "trainer.log_every_n_steps=5",
        "trainer.val_check_interval=25",
        "callback.checkpoint.every_steps=10",
    ),
)
# outside of training, or for other faults
ELSEWHERE = ("after_backward", "loading", "rewrite", "test_start")
PLACES = [place for place in WHERE if place not in ELSEWHERE]
WHATS = {"kill": 6, "term": 2, "usr1": 1, "int": 1}  # and how often
CODES = {"kill": -signal.SIGKILL, "term": 143, "usr1": 143, "int": 130}


class Outcome(NamedTuple):
    """What a soak has seen; all but the times must be as a test expects them."""

    struck: int  # faults that hit
    corrupted: int  # newest checkpoints that were damaged on purpose
    differing: list[str]  # leaves of the final checkpoint that are not bit-equal
    same_history: bool
    leftovers: list[str]  # files of killed processes that stayed
    executed: int  # steps in all, of which ``steps`` were needed
    steps: int
    seconds: float
    unbroken_seconds: float


def soak(folder: Path, num_faults: int, steps: int, seed: int, tell=lambda text: None) -> Outcome:
    """Train ``steps`` steps twice: once in peace, once with ``num_faults`` faults."""
    draw, zygote = random.Random(seed), Zygote(folder)
    words = [*RUN, f"trainer.max_steps={steps}", "resume=auto"]
    begin = time.monotonic()
    _run(zygote, [*words, f"hydra.run.dir={folder / 'unbroken'}"], (0,))
    unbroken_seconds, begin = time.monotonic() - begin, time.monotonic()
    words.append(f"hydra.run.dir={folder / 'run'}")
    store = CheckpointStore(folder / "run" / "checkpoints")
    executed = corrupted = struck = 0
    for number in range(num_faults):
        at = _step(store)
        what = draw.choices(list(WHATS), WHATS.values())[0]
        where = draw.choice(PLACES)
        step = min(at + 1 + int(draw.expovariate(2 * num_faults / steps)), steps - 2)
        done = _run(zygote, [*words, fault(step, where, what)], (CODES[what], 0))
        struck += done.code != 0
        executed += max(step, _step(store)) - at
        if draw.random() < 0.1 and len(store.candidates()) > 1:  # a bit that flips on the disk
            _flip(store.candidates()[0], draw)
            corrupted += 1
        tell(
            f"fault {number + 1}/{num_faults}: {what} at {where}, step {step}; "
            f"goes on from {_step(store)}"
        )
    executed += steps - _step(store)
    _run(zygote, words, (0,))
    seconds = time.monotonic() - begin
    zygote.close()
    one, two = folder / "run", folder / "unbroken"
    leftovers = [str(path) for path in one.rglob(".*")]
    same = repr(timeless(read_history(one))) == repr(timeless(read_history(two)))
    return Outcome(
        struck,
        corrupted,
        differences(content(one), content(two)),
        same,
        leftovers,
        executed,
        steps,
        seconds,
        unbroken_seconds,
    )


def _run(zygote, words, allowed):
    done = zygote.run("train", *words)
    assert done.code in allowed, f"exit code {done.code}: {done.err}"
    return done


def _step(store):
    """Where a run that starts now goes on from."""
    whole = [path for path in store.candidates() if not damage(path)]
    return int(whole[0].stem.split("-")[1]) if whole else 0


def _flip(path, draw):
    """Turn one bit of the tensors; the file has a second name, which then is as damaged."""
    position = draw.randrange(os.path.getsize(path) // 4, os.path.getsize(path) // 2)
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def main():
    """Print what was seen; exit code 1 where a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(
            Path(folder),
            arguments.faults,
            arguments.steps,
            arguments.seed,
            lambda text: print(text, flush=True),
        )
    for name, value in seen._asdict().items():
        print(f"{name:<18} {value:.1f}" if isinstance(value, float) else f"{name:<18} {value}")
    print(f"{'goodput':<18} {seen.steps / seen.executed:.0%} of the steps executed were needed")
    sys.exit(bool(seen.differing or seen.leftovers or not seen.same_history))


if __name__ == "__main__":
    main()
