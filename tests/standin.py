"""A job in 30 ms in the place of ``python -m src.train``, and a driver that launches such jobs.

``python tests/standin.py drive WORDS`` is ``python -m src.train WORDS`` with jobs of this kind. A
job fails where its seed is divisible by 7, takes ``STANDIN_SECONDS`` (of several, those at the
place of its seed), and counts its starts in ``starts`` of its run directory.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(words):
    settings = dict(word.split("=", 1) for word in words)
    run_dir, seed = Path(settings["hydra.run.dir"]), int(settings["seed"])
    assert settings["resume"] == "auto"
    run_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: stopped(run_dir))
    with open(run_dir / "starts", "a") as starts:
        fcntl.flock(starts, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no two at a time
        starts.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        starts.flush()
        print(f"this is the job of seed {seed}", flush=True)
        seconds = os.environ.get("STANDIN_SECONDS", "0").split(",")
        time.sleep(float(seconds[seed % len(seconds)]))
        if seed % 7 == 0:
            sys.exit(
                f"error: seed={seed}: is divisible by 7"
                if seed
                else os.kill(os.getpid(), signal.SIGKILL)
            )
        (run_dir / "metrics.json").write_text(json.dumps({"val/loss": seed / 2}))


def stopped(run_dir):
    time.sleep(0.5)  # as long as a checkpoint takes
    (run_dir / "checkpoint").touch()
    os._exit(143)


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import src.launch.job
        from src.train import main as drive

        src.launch.job.COMMAND = (sys.executable, __file__)
        del sys.argv[1]
        drive()
    else:
        main(sys.argv[1:])
