#!/usr/bin/env bash
# A Slurm cluster on loopback: controller and nodes of 4 pretended CPUs, no systemd, no cgroups. Needs root on Debian.
# n1 and n2 are the partition debug; on n3 jobs of the partition urgent push those of the partition spot aside.
# bash up.sh DIR   keeps everything below DIR; `export SLURM_CONF=DIR/slurm.conf` is all that a client needs.
set -euo pipefail
dir=$1 port=${SLURM_PORT:-26817}
fail() { echo "up.sh: $*" >&2; tail -n 5 "$dir"/log/*.log >&2; exit 1; }

if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null || true # a third-party list may be out of reach; Debian's is what counts
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi
mkdir -p "$dir"/{log,run,state,spool/n1,spool/n2,spool/n3}
chmod 755 "$dir" "$dir"/{log,run}
for node in n1 n2 n3; do # Lightning takes the master's address from the list of nodes
    grep -qE "^127\.0\.0\.1[[:space:]]+$node$" /etc/hosts || echo "127.0.0.1 $node" >>/etc/hosts
done
cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(uname -n | cut -d. -f1)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job begins after cred_expire + 1 seconds, not 121
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmdLogFile=$dir/log/slurmd.%n.log
SlurmdSpoolDir=$dir/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=1
JobRequeue=1
CompleteWait=0
KillWait=600
ReturnToService=2
NodeName=n1 NodeHostName=n1 NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=16000 State=UNKNOWN
NodeName=n2 NodeHostName=n2 NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=16000 State=UNKNOWN
NodeName=n3 NodeHostName=n3 NodeAddr=127.0.0.1 Port=$((port + 3)) CPUs=4 RealMemory=16000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE DefaultTime=10:00 State=UP
PartitionName=spot Nodes=n3 MaxTime=INFINITE DefaultTime=10:00 State=UP PriorityTier=1
PartitionName=urgent Nodes=n3 MaxTime=INFINITE DefaultTime=10:00 State=UP PriorityTier=9
CONF
head -c 128 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munged.seed" >/dev/null 2>&1 || fail "munged does not start"
slurmctld -f "$dir/slurm.conf" >/dev/null 2>&1 || fail "slurmctld does not start"
for node in n1 n2 n3; do
    slurmd -f "$dir/slurm.conf" -N $node >/dev/null 2>&1 || fail "slurmd of $node does not start"
done
export SLURM_CONF=$dir/slurm.conf
for _ in $(seq 3000); do
    [ "$(sinfo -h -N -o %T 2>/dev/null | grep -c idle)" -ge 4 ] && exit # n3 is in two partitions
    sleep 0.2
done
fail "the nodes are not idle after 10 minutes"
