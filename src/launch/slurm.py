"""Jobs on a Slurm cluster: one job array, watched through squeue alone."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.errors import ConfigError, require
from src.files import write_text
from src.launch import process
from src.launch.job import Job, available

log = logging.getLogger(__name__)
OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"}
LEFT = 3  # polls after which a job that Slurm no longer knows, and that has left no exit code, is taken for lost
KILL_WAIT = 45  # seconds that Slurm gives a cancelled job, and some more
SCRIPT = """#!/bin/bash
# One element per job. A job that was asked to stop (before its time limit, or by scancel --signal=USR1) goes back into
# the queue, unless it was cancelled, or has stopped three times in a row without a new checkpoint.
jobs=({numbers})
runs=({runs})
job={folder}/${{jobs[$SLURM_ARRAY_TASK_ID]}}
latest=${{runs[$SLURM_ARRAY_TASK_ID]}}/checkpoints/latest.json
me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
cd {cwd} || exit
rm -f "$job.exit" "$job.error"
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
{setup}
before=$(cat "$latest" 2>/dev/null)
srun --kill-on-bad-exit=1 --open-mode=append --output="$job.log" bash "$job.sh"
code=$?
[ "$before" != "$(cat "$latest" 2>/dev/null)" ] && rm -f "$job.idle" || echo >> "$job.idle"
if [ -e "$job.error" ]; then
    code=$(cat "$job.error")
elif [ $code = 143 ] && [ "$(cat "$job.idle" 2>/dev/null | wc -l)" -lt 3 ] &&
    squeue -h -j "$me" -t RUNNING | grep -q . && scontrol requeue "$me"; then
    sleep infinity  # until Slurm ends this script
fi
echo "$code" > "$job.exit.new" && mv "$job.exit.new" "$job.exit"
"""
COMMAND = """# One task of the job. The first to fail says how: Slurm stops the others, and their codes hide its own.
trap : USR1 TERM # Slurm signals all processes of a step; the command knows what to do
{command}
code=$?
[ $code = 138 ] && code=143 # USR1 came before the command listened
[ $code = 0 ] || [ $code = 143 ] || (set -o noclobber; echo $code > {error}) 2>/dev/null
exit $code
"""


@dataclass
class Slurm:
    """What ``sbatch`` is told; nodes and tasks per node are the job's ``trainer.num_nodes`` and ``trainer.devices``.

    minutes: time limit of a job between two requeues. lead: seconds before it at which the job is told to keep a
    checkpoint and go back into the queue. jobs: how many run at a time, null is no limit. poll: seconds.
    gpus: a GPU per task. options: further words for sbatch; setup: lines of shell before the job.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    lead: int = 120
    jobs: int | None = None
    cpus: int = 1
    gpus: bool = False
    options: Sequence[str] = ()
    setup: Sequence[str] = ()
    poll: float = 5
    grace: float = 10
    states: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "lead"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"launcher.{name}", value, "must be an integer >= 1")
        known = isinstance(self.jobs, int) and self.jobs >= 1
        require(known or self.jobs is None, "launcher.jobs", self.jobs, "must be an integer >= 1, or null")
        allowed = f"must be less than launcher.minutes={self.minutes}, in seconds"
        require(self.lead < 60 * self.minutes, "launcher.lead", self.lead, allowed)
        if shutil.which("sbatch") is None:
            why = "there is no sbatch here; start this on a login node of the cluster"
            raise ConfigError(f"launcher=slurm: {why} (to be one on Debian: apt-get install slurm-client)")

    def run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, int, str]]:
        """Submit the jobs that are not there from an earlier start; yield each as it ends. Leaving cancels the rest."""
        left: dict[int, int] = {}
        running: dict[int, Job] = {}
        try:
            while (arrived := available(jobs)) or running:
                left |= dict.fromkeys((job.number for job in arrived), LEFT)
                running |= {job.number: job for job in arrived}
                self._submit([job for job in arrived if not self._lives(job)])
                time.sleep(self.poll)
                answered = self._look()
                for job in list(running.values()):
                    left[job.number] -= answered and not self._lives(job)
                    end = self._end(job, left[job.number] <= 0)
                    if end:
                        del running[job.number]
                        yield job, *end
        finally:
            self._cancel(list(running.values()))

    def _submit(self, jobs: Sequence[Job]) -> None:
        """One array for all jobs that need the same nodes and tasks."""
        alike = defaultdict(list)
        for job in jobs:
            counted = isinstance(job.devices, int)
            require(counted, "trainer.devices", job.devices, "must be a number with launcher=slurm: the tasks per node")
            alike[job.nodes, job.devices].append(job)
        for (nodes, tasks), group in alike.items():
            folder, numbers = group[0].file("sh").parent, [job.number for job in group]
            for job in group:
                error = shlex.quote(str(job.file("error")))
                write_text(job.file("sh"), COMMAND.format(command=shlex.join(job.words), error=error))
                for left in ("exit", "idle"):
                    job.file(left).unlink(missing_ok=True)
            lists = {"numbers": " ".join(map(str, numbers)), "runs": shlex.join(str(job.run_dir) for job in group)}
            places = {"folder": shlex.quote(str(folder)), "cwd": shlex.quote(os.getcwd())}
            text = SCRIPT.format(setup="\n".join(self.setup), **lists, **places)
            script = folder / f"array-{numbers[0]}-{nodes}x{tasks}.sh"
            write_text(script, text)
            number = self._sbatch(script, len(group), nodes, tasks)
            for element, job in enumerate(group):
                job.handle, job.status = f"{number}_{element}", "running"
                job.record()
            log.info("Slurm job array %s: %d elements", number, len(group))

    def _sbatch(self, script: Path, num: int, nodes: int, tasks: int) -> str:
        at_once = f"%{self.jobs}" if self.jobs else ""
        words = ["sbatch", "--parsable", "--requeue", "--open-mode=append", "--job-name=genbench"]
        words += [f"--array=0-{num - 1}{at_once}", f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
        words += [f"--cpus-per-task={self.cpus}", f"--time={self.minutes}", f"--signal=USR1@{self.lead}"]
        words += [f"--output={script.with_suffix('')}-%a.log"]
        words += [f"--gpus-per-node={tasks}"] if self.gpus else []
        words += [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(self, name))]
        done = _slurm([*words, *self.options, str(script)])
        if done.returncode:
            raise ConfigError(f"launcher=slurm: sbatch refuses: {' '.join(done.stderr.split())}")
        return done.stdout.split(";")[0].strip()

    def _look(self) -> bool:
        """Ask for the states of all of the user's jobs; where Slurm does not answer, those of before stand."""
        done = _slurm(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"])
        if done.returncode:
            log.warning("squeue does not answer: %s", " ".join(done.stderr.split()))
            return False
        self.states = dict(line.split() for line in done.stdout.splitlines())
        return True

    def _lives(self, job: Job) -> bool:
        """Whether Slurm runs the job, or will."""
        if job.handle is not None and not self.states:
            self._look()
        return self.states.get(job.handle, "COMPLETED") not in OVER

    def _end(self, job: Job, lost: bool) -> tuple[int, str] | None:
        """Exit code and reason of a job that has ended."""
        state = self.states.get(job.handle, "")
        if state in OVER or lost:
            if state in ("CANCELLED", ""):
                return 143, "cancelled at the cluster"
            if state != "COMPLETED" and not job.file("exit").exists():
                return 1, f"Slurm says {state}"
        if job.file("exit").exists():
            return int(job.file("exit").read_text()), ""
        return (1, f"Slurm says {state}, without an exit code") if lost else None

    def _cancel(self, jobs: list[Job]) -> None:
        """Cancel what lives and wait until it is gone: each job keeps a checkpoint first."""
        there = [job for job in jobs if job.handle and self._lives(job)]
        if there:
            _slurm(["scancel", *(job.handle for job in there)])
        end = time.monotonic() + self.grace + KILL_WAIT
        while self._look() and any(map(self._lives, there)) and time.monotonic() < end:
            time.sleep(min(self.poll, 1))
        for job in there:
            job.settle(143)


def _slurm(words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of Slurm, without the variables of a job that the driver itself may be."""
    return subprocess.run(words, capture_output=True, text=True, check=False, env=process.environment())
