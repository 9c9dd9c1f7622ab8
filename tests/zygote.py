"""Real processes of the command line in a tenth of a second, by forks.

They are forks of a process that has imported everything.

A fork before any tensor was touched behaves like a fresh interpreter, and may be killed like one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """code: exit status, minus the signal of one that was killed."""

    code: int
    out: str
    err: str


class Job:
    """A running process."""

    def __init__(self, zygote, pid, log):
        self.zygote, self.pid, self.log = zygote, pid, log

    def said(self, text):
        """Whether it has printed that."""
        out = Path(f"{self.log}.out")
        return out.exists() and text in out.read_text()

    def wait(self):
        """Its end; jobs of a zygote are waited for in any order."""
        code = self.zygote.ask({"wait": self.pid})
        return Done(code, Path(f"{self.log}.out").read_text(), Path(f"{self.log}.err").read_text())


class Zygote:
    """Starts ``python -m src.<entry> WORDS`` by forking."""

    def __init__(self, folder):
        self.folder, self.count = Path(folder), 0
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "tests"),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, entry, *words, **environment):
        self.count += 1
        log = self.folder / f"{self.count}-{entry}"
        return Job(
            self,
            self.ask(
                {
                    "entry": entry,
                    "words": [str(w) for w in words],
                    "log": str(log),
                    "env": environment,
                }
            ),
            log,
        )

    def run(self, entry, *words, **environment):
        return self.start(entry, *words, **environment).wait()

    def close(self):
        self.process.kill()
        self.process.wait()


def _serve():
    import runpy

    import matplotlib.figure  # noqa: F401
    import pytorch_lightning  # noqa: F401

    import src.callback.checkpoint
    import src.evaluate
    import src.logger.loggers
    import src.model.diffusion
    import src.report.summary
    import src.sample
    import src.train
    import src.training.assembly  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                os.setsid()  # a signal to the group of a job is its own affair
                for stream, end in ((1, "out"), (2, "err")):
                    os.dup2(
                        os.open(f"{job['log']}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                        stream,
                    )
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(job["env"])
                sys.argv = [f"src/{job['entry']}.py", *job["words"]]
                sys.modules.pop(f"src.{job['entry']}")
                runpy.run_module(f"src.{job['entry']}", run_name="__main__", alter_sys=True)
                os._exit(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _serve()
