"""Scripts for Slurm: one for the elements of an array, and one for the tasks of each job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from src.files import write_text
from src.launch.job import Job
from src.rundir.lock import ATTEMPT

ARRAY = """#!/bin/bash
# One element per job. A job that was stopped (before its time limit, or by scancel --signal=USR1)
# goes back into the queue, unless it was cancelled, or has stopped three times in a row without a
# new checkpoint.
jobs=({numbers})
runs=({runs})
job={folder}/${{jobs[$SLURM_ARRAY_TASK_ID]}}
latest=${{runs[$SLURM_ARRAY_TASK_ID]}}/checkpoints/latest.json
me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
runs_on() {{ # whether nobody has cancelled it; Slurm may take some time to answer
    for _ in 1 2 3; do state=$(squeue -h -j "$me" -o %T 2>/dev/null) && break; sleep 5; done
    [ "$state" = RUNNING ]
}}
may_try_again() {{ [ "$(cat "$job.idle" 2>/dev/null | wc -l)" -lt 3 ]; }}
cd {cwd} || exit
rm -f "$job.exit" "$job.error"
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
{setup}
before=$(cat "$latest" 2>/dev/null)
srun --kill-on-bad-exit=1 --open-mode=append --output="$job.log" bash "$job.sh"
code=$?
if [ $code = 143 ] && [ "$before" = "$(cat "$latest" 2>/dev/null)" ]; then
    echo >> "$job.idle"
else
    rm -f "$job.idle"
fi
if [ -e "$job.error" ]; then
    code=$(cat "$job.error")
elif [ $code = 143 ] && may_try_again && runs_on && scontrol requeue "$me"; then
    sleep infinity  # until Slurm ends this script
fi
echo "$code" > "$job.exit.new" && mv "$job.exit.new" "$job.exit"
"""
TASK = """# One task of the job. The first to fail writes its code: Slurm stops the others, and
# their codes would hide it.
trap : USR1 TERM # Slurm signals all processes of a step; the command handles it
# a later attempt may take over the lock of an earlier one
export {attempt}={run}" "$(({starts}000 + ${{SLURM_RESTART_COUNT:-0}}))
{command}
code=$?
[ $code = 138 ] && code=143 # USR1 came before the command listened
[ $code = 0 ] || [ $code = 143 ] || (set -o noclobber; echo $code > {error}) 2>/dev/null
exit $code
"""


def write_array(jobs: Sequence[Job], setup: Sequence[str]) -> Path:
    """Write the scripts of jobs that need the same nodes and tasks; returns the array's.

    setup: lines of shell before the job.
    """
    folder = jobs[0].file("sh").parent
    for job in jobs:
        task = TASK.format(
            command=shlex.join(job.command),
            error=shlex.quote(str(job.file("error"))),
            attempt=ATTEMPT,
            run=shlex.quote(str(job.run_dir)),
            starts=job.starts + 1,
        )
        write_text(job.file("sh"), task)
        for left in ("exit", "idle"):
            job.file(left).unlink(missing_ok=True)
    numbers = [str(job.number) for job in jobs]
    runs = [str(job.run_dir) for job in jobs]
    array = ARRAY.format(
        numbers=" ".join(numbers),
        runs=shlex.join(runs),
        folder=shlex.quote(str(folder)),
        cwd=shlex.quote(os.getcwd()),
        setup="\n".join(setup),
    )
    path = folder / f"array-{numbers[0]}-{jobs[0].nodes}x{jobs[0].devices}.sh"
    write_text(path, array)
    return path
