#!/usr/bin/env bash
# Stops what up.sh has started, by the process ids in its files: bash down.sh DIR
dir=$1
export SLURM_CONF=$dir/slurm.conf
jobs=$(squeue -h -o %F 2>/dev/null | sort -u)
[ -z "$jobs" ] || scancel $jobs
for _ in $(seq 600); do
    [ -n "$(squeue -h 2>/dev/null)" ] || break
    sleep 0.1
done
for file in "$dir"/run/slurmd.*.pid "$dir"/run/slurmctld.pid "$dir"/run/munged.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null
    for _ in $(seq 600); do
        grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" || break # a zombie is gone too
        sleep 0.1
    done
done
