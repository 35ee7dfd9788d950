#!/usr/bin/env bash
# Trains on a SLURM cluster, on one or many nodes, with one process for each GPU.
#
#   sbatch [SBATCH OPTIONS] launch/slurm.sh --config=RECIPE --workdir=FOLDER \
#     [--config.KEY=VALUE …]
#   bash launch/slurm.sh --dry-run …  prints the commands, and runs none
#   bash launch/slurm.sh --help       this text
#
# Submit it from the project's folder; all nodes share that folder and the
# workdir. For example, on two nodes of four GPUs:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --time=8:00:00 \
#     launch/slurm.sh --config=configs/pretrain.py:vit,cifar10 --workdir=runs/A
#
# --ntasks-per-node has to equal --gpus-per-node. The job uses
# .venv/bin/python, or `python` if there is none. To create .venv, on a machine
# with internet access: EXTRAS="[gpu]" bash launch/environment.sh
#
# Five minutes before its time limit the job saves a checkpoint and requeues
# itself, until the run has finished. SLURM requeues a job that is preempted or
# loses a node, and it resumes from the last checkpoint. A job that fails, or
# that you cancel, stays away; the same command resumes it.
#SBATCH --job-name=vit-ssl-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail
# SLURM runs a copy of this file from elsewhere, in the same working folder.
if [ ! -f launch/commands.sh ]; then
  echo "error: there is no launch/commands.sh in $PWD: submit launch/slurm.sh" \
    "from the project's folder" >&2
  exit 2
fi
# shellcheck source=launch/commands.sh
source launch/commands.sh

script=launch/slurm.sh
step=() stopping=""

main() {
  parse "$@"
  check_training ""
  make_step
  if [ -n "$dry_run" ]; then
    say "on the login node:"
    perform sbatch launch/slurm.sh "${training[@]:2}"
    say "in the job:"
    perform "${step[@]}"
    say "and, if its time limit stopped it:"
    # shellcheck disable=SC2016
    echo 'scontrol requeue "$SLURM_JOB_ID"'
    return
  fi
  check_job
  run
}

# JAX finds the processes through SLURM's variables, and gives each the GPU of
# its number on the node (SLURM_LOCALID, jax/_src/clusters/slurm_cluster.py). So
# each process has to see all GPUs of its node, as with --gpus-per-node and not
# with --gpus-per-task. A process that ends leaves the others two minutes to
# save. Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch.
make_step() {
  local python=python
  if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
  fi
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

# SLURM signals the time limit to this shell alone, which tells it apart from
# scancel, after which the job stays away.
run() {
  local status=0 pid
  trap stop USR1
  "${step[@]}" &
  pid=$!
  wait "$pid" || status=$?
  if [ -n "$stopping" ]; then # the signal interrupted `wait`
    status=0
    wait "$pid" || status=$?
    if [ "$status" -ne 0 ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
  fi
  exit "$status"
}

# Signals the processes on all nodes, and not this shell.
stop() {
  stopping=1
  trap '' USR1
  scancel --signal=TERM "$SLURM_JOB_ID"
}

main "$@"
