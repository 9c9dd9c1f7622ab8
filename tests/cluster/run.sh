#!/usr/bin/env bash
# make test-cluster: starts a Slurm cluster, runs the tests that need one, stops everything that it has started.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "cluster tests skipped: Slurm is installed from Debian's packages and started as root, and this is not root on Debian"
    exit 0
fi
make --no-print-directory install EXTRAS=slurm,ray
dir=$(mktemp -d)
trap 'bash tests/cluster/down.sh "$dir"; rm -rf "$dir"' EXIT
bash tests/cluster/up.sh "$dir"
export SLURM_CONF=$dir/slurm.conf
timeout 3600 .venv/bin/python -m pytest -m cluster -n 2 tests/test_cluster.py "$@"
