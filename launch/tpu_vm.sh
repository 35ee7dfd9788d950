#!/usr/bin/env bash
# Trains on a slice of TPU VMs through gcloud.
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTION …]
#
#   create   creates the slice
#   install  copies this folder to all workers, installs it there, and mounts
#            the shared folder as /shared
#   run      starts `python -m main …` on all workers, detached
#   resume   does what the run still needs: creates the slice, or creates it
#            anew after a preemption, waits for it, installs, and runs; does
#            nothing while all workers run
#   status   shows for each worker whether it runs, and its last line
#   log      follows the log of the first worker
#   stop     stops the run with a checkpoint
#   delete   deletes the slice
#
#   --name=NAME, --zone=ZONE  of the slice; --project=ID if not gcloud's own
#   --type=TYPE               create: accelerator type, such as v5litepod-16
#   --version=VERSION         create: runtime, such as v2-alpha-tpuv5-lite
#   --spot                    create: cheaper, and may be preempted
#   --queued                  a queued resource; create, resume and delete all
#                             need it
#   --bucket=NAME             install: the shared folder is this bucket; it
#                             needs a hierarchical namespace
#   --nfs=SERVER:/EXPORT      install: or this NFS export, such as Filestore's
#   --config=RECIPE --workdir=/shared/FOLDER --config.KEY=VALUE
#                             run: as for `python -m main`
#   --dry-run                 prints the commands instead of running them
#   --help                    this text
#
# Every command accepts all options; resume needs those of create, install and
# run. For example:
#
#   bash launch/tpu_vm.sh resume --name=vit --zone=us-west4-a --spot \
#     --type=v5litepod-16 --version=v2-alpha-tpuv5-lite --bucket=my-bucket \
#     --config=configs/pretrain.py:vit,cifar10 --workdir=/shared/A
#
# All workers share the workdir. A bucket without a hierarchical namespace
# renames a folder object by object, so a preemption could leave half a
# checkpoint that looks complete; the script refuses it. To create one:
#
#   gcloud storage buckets create gs://NAME --location=REGION \
#     --uniform-bucket-level-access --enable-hierarchical-namespace
#
# The VMs' service account needs to write to it (Storage Object User). gcloud
# reaches several workers only through an SSH agent that has its key: ssh-add
# ~/.ssh/google_compute_engine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh

script=launch/tpu_vm.sh
commands="create install run resume status log stop delete"
options="--name= --zone= --project= --type= --version= --spot --queued"
options="$options --bucket= --nfs="
name="" zone="" project="" type="" version="" spot="" queued="" bucket="" nfs=""
slice=() # the arguments of gcloud that name the slice
tpus=(gcloud compute tpus)

main() {
  parse "$@"
  check_arguments
  slice=("$name" "--zone=$zone" ${project:+"--project=$project"})
  check_installed gcloud https://cloud.google.com/sdk
  "$command"
}

check_arguments() {
  check --name "$name" '[a-z]([a-z0-9-]*[a-z0-9])?' \
    "small letters, digits and hyphens, such as vit-1"
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-west4-a"
  if [ -n "$project" ]; then
    check --project "$project" '[a-z0-9:.-]+' "a project's ID"
  fi
  if [[ $command == create || $command == resume ]]; then
    check --type "$type" '[a-z0-9]+-[0-9]+' \
      "an accelerator type such as v5litepod-16 or v6e-16"
    check --version "$version" '[a-z0-9.-]+' \
      "a runtime such as v2-alpha-tpuv5-lite or v2-alpha-tpuv6e"
  fi
  if [[ $command == install || $command == resume ]]; then
    one_of "the shared folder" --bucket=NAME "$bucket" \
      --nfs=SERVER:/EXPORT "$nfs"
    if [ -n "$bucket" ]; then
      check_bucket_name "$bucket"
    else
      check --nfs "$nfs" '[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]+' "SERVER:/EXPORT"
    fi
  fi
  if [[ $command == run || $command == resume ]]; then
    check_training /shared
  fi
}

create() {
  if [ -n "$queued" ]; then
    perform "${tpus[@]}" queued-resources create "${slice[@]}" \
      "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" ${spot:+--spot}
  else
    perform "${tpus[@]}" tpu-vm create "${slice[@]}" \
      "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
  fi
}

delete() {
  if [ -n "$queued" ]; then # --force deletes its node too
    perform "${tpus[@]}" queued-resources delete "${slice[@]}" --force --quiet
  else
    perform "${tpus[@]}" tpu-vm delete "${slice[@]}" --quiet
  fi
}

# Runs a query of gcloud and prints its answer; $1 is the sentence for no answer.
ask() {
  local failure=$1
  shift
  if [ -n "$dry_run" ]; then
    perform "$@"
  else
    "$@" || fail "$failure"
  fi
}

# Prints all slices and their states. `describe` would fail for a slice that
# does not exist as it does without a connection.
states() {
  local kind=tpu-vm field=state
  if [ -n "$queued" ]; then
    kind=queued-resources field=state.state
  fi
  ask "gcloud does not say which slices there are" \
    "${tpus[@]}" "$kind" list "${slice[@]:1}" \
    "--format=value(name.basename(),$field)"
}

# Creates the slice, also after a preemption, and waits until it is ready.
ready() {
  local all now created=""
  while true; do
    all=$(states)
    now=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$all")
    case $now in
      READY | ACTIVE) return ;;
      "")
        create
        created=1
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        if [ -n "$created" ]; then
          fail "the slice $name is $now right after create: gcloud says why"
        fi
        say "the slice $name is $now: creating it anew"
        delete
        ;;
      STOPPED | HIDDEN) fail "the slice $name is $now: start or delete it" ;;
      *)
        say "the slice $name is $now: waiting"
        sleep "${POLL_SECONDS:-30}"
        ;;
    esac
  done
}

# Refuses a bucket that does not rename a checkpoint's folder atomically.
check_bucket() {
  local answer
  [ -n "$bucket" ] || return 0
  answer=$(ask "gcloud finds no bucket gs://$bucket" \
    gcloud storage buckets describe "gs://$bucket" --raw \
    "--format=value(hierarchicalNamespace.enabled)")
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$answer"
  elif [[ $answer != [Tt]rue ]]; then
    fail "the bucket gs://$bucket has no hierarchical namespace, which" \
      "checkpoints need: create one with --enable-hierarchical-namespace"
  fi
}

# Runs a command on workers: which ones (all, or a number), and the command.
on_workers() {
  perform "${tpus[@]}" tpu-vm ssh "${slice[@]}" "--worker=$1" "--command=${*:2}"
}

worker() { on_workers all "bash vit-ssl-jax/launch/tpu_worker.sh $*"; }
status() { worker status; }
stop() { worker stop; }
log() { on_workers 0 "tail -n 100 -F vit-ssl-jax/run.log"; }

install() {
  local archive=${TMPDIR:-/tmp}/vit-ssl-jax-$name.tar.gz
  check_bucket
  perform tar -czf "$archive" --exclude=__pycache__ main.py setup.py \
    pyproject.toml README.md configs launch vit_ssl_jax
  perform "${tpus[@]}" tpu-vm scp "$archive" \
    "$name:vit-ssl-jax.tar.gz" "${slice[@]:1}" --worker=all
  on_workers all "mkdir -p vit-ssl-jax &&" \
    "tar -xzf vit-ssl-jax.tar.gz -C vit-ssl-jax &&" \
    "bash vit-ssl-jax/launch/tpu_worker.sh install ${nfs:-gs://$bucket}"
}

# --distributed suits a slice of one host too.
run() { worker start "$(quoted "${training[@]}" --distributed)"; }

resume() {
  check_bucket # before anything that costs money
  if [ -n "$dry_run" ]; then
    states
    say "after a preemption:"
    delete
    say "if there is no slice; then it waits until the slice is ready:"
    create
    say "unless all workers run:"
    status
  else
    ready
    if status; then
      say "all workers run already"
      return
    fi
  fi
  install
  stop # workers that wait for others that are gone
  run
}

main "$@"
