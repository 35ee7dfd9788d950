#!/usr/bin/env bash
# Trains on a SLURM cluster, on one GPU or many, on one node or many.
#
#   sbatch [SBATCH OPTIONS] launch/slurm.sh --config=RECIPE --workdir=FOLDER \
#     [--config.KEY=VALUE …]
#   bash launch/slurm.sh --dry-run …  prints what would be run, and runs nothing
#   bash launch/slurm.sh --help       this text
#
# from the project's folder, which all nodes have to see, as they have to see
# the workdir. Two nodes of four GPUs, for example:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --time=8:00:00 \
#     launch/slurm.sh --config=configs/pretrain.py:vit,cifar10 --workdir=runs/A
#
# There is one process for each GPU: --ntasks-per-node is what --gpus-per-node
# is. .venv/bin/python runs it, where there is one, or else `python`; to make
# one, on a machine that reaches the internet: EXTRAS="[gpu]" bash
# launch/environment.sh
#
# Five minutes before its time is over the job saves a checkpoint and queues
# itself again; so it does until the run has finished. A job that is preempted,
# or whose node fails, is queued again by SLURM and goes on from the last
# checkpoint. One that fails, or that you cancel, is not. To begin anew by hand,
# give the same command again.
#SBATCH --job-name=vit-ssl-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail
# SLURM runs a copy of this file that lies elsewhere; the folder is the same.
if [ ! -f launch/commands.sh ]; then
  echo "error: there is no launch/commands.sh in $PWD: submit launch/slurm.sh" \
    "from the project's folder" >&2
  exit 2
fi
# shellcheck source=launch/commands.sh
source launch/commands.sh

step=()
stopping=""

main() {
  local option
  for option in "$@"; do
    case $option in
      --dry-run) dry_run=1 ;;
      --help | -h)
        help launch/slurm.sh
        exit 0
        ;;
      *) take "$option" "--dry-run, --help" ;;
    esac
  done
  check_training ""
  make_step
  if [ -n "$dry_run" ]; then
    say "on the login node:"
    perform sbatch launch/slurm.sh "${training[@]:2}"
    say "in the job:"
    perform "${step[@]}"
    say "and, where it was stopped because its time was over:"
    # shellcheck disable=SC2016
    echo 'scontrol requeue "$SLURM_JOB_ID"'
    return
  fi
  check_job
  run
}

# JAX finds the processes of a step of srun by SLURM's variables, and then gives
# each the one GPU of its number on the node (SLURM_LOCALID, in
# jax/_src/clusters/slurm_cluster.py). So there has to be a process for each
# GPU, and each has to see all of its node, which is what --gpus-per-node does
# and --gpus-per-task would not. A process that has ended leaves the others two
# minutes to save and end too.
make_step() {
  local python=python
  if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
  fi
  # Since SLURM 22.05 srun does not take the number of cores from sbatch.
  step=(srun "--cpus-per-task=${SLURM_CPUS_PER_TASK:-4}"
    --kill-on-bad-exit=0 --wait=120 "$python" "${training[@]}" --distributed)
}

check_job() {
  local gpus=${SLURM_GPUS_ON_NODE:-} processes=${SLURM_NTASKS_PER_NODE:-1}
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    fail "this is no SLURM job: submit it with sbatch launch/slurm.sh …, or" \
      "see what it would do with --dry-run"
  fi
  if [ -n "$gpus" ] && [ "$gpus" != "$processes" ]; then
    fail "a node has $gpus GPUs and --ntasks-per-node=$processes: possible is" \
      "--ntasks-per-node=$gpus, one process for each GPU"
  fi
}

# SLURM tells this shell alone that the time is nearly over, so that it is told
# apart from a cancelled job, which is not to come back.
run() {
  local status=0 pid
  trap stop USR1
  "${step[@]}" &
  pid=$!
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do # the signal interrupts `wait`
    status=0
    wait "$pid" || status=$?
  done
  if [ -n "$stopping" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}

# Signals the processes of the step on all nodes, and not this shell.
stop() {
  stopping=1
  scancel --signal=TERM "$SLURM_JOB_ID"
}

main "$@"
