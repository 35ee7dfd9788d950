#!/usr/bin/env bash
# Trains on a slice of TPU VMs, through gcloud.
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTION …]
#
#   create   asks for the slice
#   install  copies this folder to all workers, installs it there, and mounts
#            the shared folder as /shared
#   run      starts `python -m main …` on all workers; it goes on without us
#   resume   whatever is missing for the run to go on: creates the slice where
#            there is none, or anew where it was preempted, waits until it is
#            ready, installs, and runs; does nothing where all workers run
#   status   says of each worker whether it runs, and its last words
#   log      follows what the first worker says
#   stop     stops the run, with a checkpoint
#   delete   gives the slice back
#
#   --name=NAME, --zone=ZONE  the slice's; --project=ID if not gcloud's own
#   --type=TYPE               create: its accelerator type, such as v5litepod-16
#   --version=VERSION         create: its runtime, such as v2-alpha-tpuv5-lite
#   --spot                    create: cheaper, and may be preempted
#   --queued                  a queued resource; to be given to create, resume
#                             and delete alike
#   --bucket=NAME             install: the shared folder is this bucket, which
#                             has to have a hierarchical namespace
#   --nfs=SERVER:/EXPORT      install: or this NFS export, such as Filestore's
#   --config=RECIPE --workdir=/shared/FOLDER --config.KEY=VALUE
#                             run: as for `python -m main`
#   --dry-run                 prints the commands, and runs none
#   --help                    this text
#
# All options may be given to all commands; resume takes those of create,
# install and run. For example:
#
#   bash launch/tpu_vm.sh resume --name=vit --zone=us-west4-a --spot \
#     --type=v5litepod-16 --version=v2-alpha-tpuv5-lite --bucket=my-bucket \
#     --config=configs/pretrain.py:vit,cifar10 --workdir=/shared/A
#
# The workdir has to be a folder that all workers see. In a bucket without a
# hierarchical namespace a folder is renamed object by object, and a checkpoint
# that a preemption cut off could look whole; so one is refused. To make one:
#
#   gcloud storage buckets create gs://NAME --location=REGION \
#     --uniform-bucket-level-access --enable-hierarchical-namespace
#
# The VMs' service account needs to be allowed to write to it (Storage Object
# User). gcloud reaches several workers only by an SSH agent that has its key:
# ssh-add ~/.ssh/google_compute_engine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh

commands="create, install, run, resume, status, log, stop, delete"
options="--name, --zone, --project, --type, --version, --spot, --queued,"
options="$options --bucket, --nfs, --dry-run, --help"
name="" zone="" project="" type="" version="" spot="" queued="" share=""
where=() # what says which slice is meant

main() {
  local command=${1:---help}
  case $command in
    --help | -h)
      help launch/tpu_vm.sh
      exit 0
      ;;
    create | install | run | resume | status | log | stop | delete) shift ;;
    *) fail "unknown command $command: possible are $commands" ;;
  esac
  parse "$@"
  check_arguments "$command"
  where=("$name" "--zone=$zone" ${project:+"--project=$project"})
  if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not installed: see https://cloud.google.com/sdk"
  fi
  "$command"
}

parse() {
  local bucket="" nfs="" option
  for option in "$@"; do
    case $option in
      --name=*) name=${option#*=} ;;
      --zone=*) zone=${option#*=} ;;
      --project=*) project=${option#*=} ;;
      --type=*) type=${option#*=} ;;
      --version=*) version=${option#*=} ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --bucket=*) bucket=${option#*=} ;;
      --nfs=*) nfs=${option#*=} ;;
      --dry-run) dry_run=1 ;;
      --help | -h)
        help launch/tpu_vm.sh
        exit 0
        ;;
      *) take "$option" "$options" ;;
    esac
  done
  if [ -n "$bucket" ] && [ -n "$nfs" ]; then
    fail "--bucket=$bucket and --nfs=$nfs were both given: one is possible"
  fi
  if [ -n "$bucket" ]; then
    check --bucket "$bucket" '[a-z0-9][a-z0-9._-]*[a-z0-9]' \
      "a bucket's name, without gs://"
    share=gs://$bucket
  elif [ -n "$nfs" ]; then
    check --nfs "$nfs" '[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]+' "SERVER:/EXPORT"
    share=$nfs
  fi
}

check_arguments() {
  check --name "$name" '[a-z]([a-z0-9-]*[a-z0-9])?' \
    "small letters, digits and hyphens, such as vit-1"
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-west4-a"
  if [ -n "$project" ]; then
    check --project "$project" '[a-z0-9:.-]+' "a project's ID"
  fi
  case $1 in
    create | resume)
      check --type "$type" '[a-z0-9]+-[0-9]+' \
        "an accelerator type such as v5litepod-16 or v6e-16"
      check --version "$version" '[a-z0-9.-]+' \
        "a runtime such as v2-alpha-tpuv5-lite or v2-alpha-tpuv6e"
      ;;
  esac
  case $1 in
    install | resume)
      if [ -z "$share" ]; then
        fail "the shared folder is missing: possible are --bucket=NAME" \
          "and --nfs=SERVER:/EXPORT"
      fi
      ;;
  esac
  case $1 in
    run | resume) check_training /shared ;;
  esac
}

create() {
  if [ -n "$queued" ]; then
    perform gcloud compute tpus queued-resources create "${where[@]}" \
      "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" ${spot:+--spot}
  else
    perform gcloud compute tpus tpu-vm create "${where[@]}" \
      "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
  fi
}

delete() {
  if [ -n "$queued" ]; then # its node goes with it
    perform gcloud compute tpus queued-resources delete "${where[@]}" \
      --force --quiet
  else
    perform gcloud compute tpus tpu-vm delete "${where[@]}" --quiet
  fi
}

# Prints the slice's state, or nothing where there is no such slice. A list
# fails only where gcloud does, so that no slice and no answer are told apart.
state() {
  local list found
  if [ -n "$queued" ]; then
    list=(gcloud compute tpus queued-resources list "${where[@]:1}"
      "--format=value(name.basename(),state.state)")
  else
    list=(gcloud compute tpus tpu-vm list "${where[@]:1}"
      "--format=value(name.basename(),state)")
  fi
  if [ -n "$dry_run" ]; then
    perform "${list[@]}"
    return
  fi
  found=$("${list[@]}") || fail "gcloud does not say which slices there are"
  awk -v name="$name" '$1 == name { print $2 }' <<<"$found"
}

# Makes the slice where there is none, or anew where it was preempted, and waits
# until it is ready.
ready() {
  local now made=""
  while true; do
    now=$(state)
    case $now in
      READY | ACTIVE) return ;;
      "")
        create
        made=1
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        if [ -n "$made" ]; then
          fail "the slice $name is $now, and was made only now:" \
            "gcloud says why"
        fi
        say "the slice $name is $now: making it anew"
        delete
        ;;
      STOPPED | HIDDEN) fail "the slice $name is $now: start or delete it" ;;
      *) # on its way, to be or not to be
        say "the slice $name is $now: waiting"
        sleep "${POLL_SECONDS:-30}"
        ;;
    esac
  done
}

# Runs a command on workers: which ones (all, or a number), and the command.
on_workers() {
  local workers=$1
  shift
  perform gcloud compute tpus tpu-vm ssh "${where[@]}" "--worker=$workers" \
    "--command=$*"
}

install() {
  local archive=${TMPDIR:-/tmp}/vit-ssl-jax-$name.tar.gz
  check_bucket
  perform tar -czf "$archive" --exclude=__pycache__ main.py setup.py \
    pyproject.toml README.md configs launch vit_ssl_jax
  perform gcloud compute tpus tpu-vm scp "$archive" \
    "$name:vit-ssl-jax.tar.gz" "${where[@]:1}" --worker=all
  on_workers all "mkdir -p vit-ssl-jax &&" \
    "tar -xzf vit-ssl-jax.tar.gz -C vit-ssl-jax &&" \
    "bash vit-ssl-jax/launch/tpu_worker.sh install $(quoted "$share")"
}

# Refuses a bucket in which a checkpoint's folder would not be renamed at once.
check_bucket() {
  local asking answer
  [[ $share == gs://* ]] || return 0
  asking=(gcloud storage buckets describe "$share" --raw
    "--format=value(hierarchicalNamespace.enabled)")
  if [ -n "$dry_run" ]; then
    perform "${asking[@]}"
    return
  fi
  answer=$("${asking[@]}") || fail "gcloud finds no bucket $share"
  if ! [[ $answer =~ ^[Tt]rue$ ]]; then
    fail "the bucket $share has no hierarchical namespace, without which a" \
      "checkpoint is not written at once or not at all: make one with" \
      "--enable-hierarchical-namespace"
  fi
}

# A slice of one host is told to look for others too: it finds none.
run() {
  on_workers all "bash vit-ssl-jax/launch/tpu_worker.sh start" \
    "$(quoted "${training[@]}" --distributed)"
}

status() {
  on_workers all "bash vit-ssl-jax/launch/tpu_worker.sh status"
}

stop() {
  on_workers all "bash vit-ssl-jax/launch/tpu_worker.sh stop"
}

log() {
  on_workers 0 "tail -n 100 -F vit-ssl-jax/run.log"
}

resume() {
  check_bucket # before anything is made that costs money
  if [ -n "$dry_run" ]; then
    state
    say "where the slice was preempted:"
    delete
    say "where there is none, or none any more; then waiting until it is ready:"
    create
    say "where not all workers run:"
    status
  else
    ready
    if status; then
      say "all workers run already"
      return
    fi
  fi
  install
  stop # where some are left waiting for others that are gone
  run
}

main "$@"
