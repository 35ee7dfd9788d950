#!/usr/bin/env bash
# Trains on GKE through kubectl: a JobSet with one pod for each host, on a TPU
# slice or on GPU nodes.
#
#   bash launch/gke.sh COMMAND --name=NAME [OPTION …]
#
#   run     creates the JobSet
#   status  shows it and its pods
#   log     follows the log of the first pod
#   delete  deletes it; run creates it anew, and resumes in the same workdir
#
#   --name=NAME               of the JobSet; --namespace=NAME if not kubectl's
#   --image=IMAGE             run: built from launch/Dockerfile
#   --tpu=TYPE --topology=AxB run: TPUs, such as tpu-v5-lite-podslice and 4x4;
#                             --chips-per-host=4 is the default
#   --gpu=TYPE --hosts=N      run: or GPUs, such as nvidia-h100-80gb on 2 nodes;
#                             --gpus-per-host=8 is the default
#   --bucket=NAME             run: mounts this bucket as /shared; it needs a
#                             hierarchical namespace
#   --claim=NAME              run: or this PersistentVolumeClaim, ReadWriteMany
#   --service-account=NAME    run: of the pods; it needs access to the bucket
#   --restarts=N              run: at most so many restarts; 100 is the default
#   --config=RECIPE --workdir=/shared/FOLDER --config.KEY=VALUE
#                             run: as for `python -m main`
#   --dry-run                 prints the commands instead of running them
#   --help                    this text
#
# Every command accepts all options. For example:
#
#   docker build --tag=REGISTRY/vit-ssl-jax --build-arg=EXTRAS=tpu \
#     --file=launch/Dockerfile . && docker push REGISTRY/vit-ssl-jax
#   bash launch/gke.sh run --name=vit --image=REGISTRY/vit-ssl-jax \
#     --tpu=tpu-v5-lite-podslice --topology=4x4 --bucket=my-bucket \
#     --config=configs/pretrain.py:vit,cifar10 --workdir=/shared/A
#
# The cluster needs the JobSet controller (https://jobset.sigs.k8s.io), such
# nodes and, for a bucket, the Cloud Storage FUSE CSI driver. If a pod fails or
# loses its node, JobSet restarts all pods, and they resume from the last
# checkpoint; a mistake in the command ends the JobSet. `launch/tpu_vm.sh
# --help` says how to create the bucket.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh

script=launch/gke.sh
commands="run status log delete"
options="--name= --namespace= --image= --tpu= --topology= --chips-per-host="
options="$options --gpu= --hosts= --gpus-per-host= --bucket= --claim="
options="$options --service-account= --restarts="
name="" namespace="" image="" tpu="" topology="" chips_per_host=4
gpu="" hosts="" gpus_per_host=8 bucket="" claim=""
service_account=default restarts=100
kubectl=(kubectl)

main() {
  parse "$@"
  check --name "$name" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' \
    "at most 40 small letters, digits and hyphens, such as vit-1"
  if [ -n "$namespace" ]; then
    check --namespace "$namespace" '[a-z0-9]([a-z0-9-]*[a-z0-9])?' \
      "a namespace's name"
    kubectl+=("--namespace=$namespace")
  fi
  if [ "$command" = run ]; then
    check_run
  fi
  check_installed kubectl https://kubernetes.io/docs/tasks/tools
  "$command"
}

check_run() {
  check --image "$image" '[A-Za-z0-9._:/@-]+' "an image such as HOST/NAME:TAG"
  check --service-account "$service_account" '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' \
    "the name of a Kubernetes service account"
  check --restarts "$restarts" '0|[1-9][0-9]{0,5}' "a number"
  one_of "the shared folder" --bucket=NAME "$bucket" --claim=NAME "$claim"
  if [ -n "$bucket" ]; then
    check_bucket_name "$bucket"
  else
    check --claim "$claim" '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' \
      "the name of a PersistentVolumeClaim"
  fi
  one_of "the accelerator" --tpu=TYPE "$tpu" --gpu=TYPE "$gpu"
  if [ -n "$tpu" ]; then
    check_tpus
  else
    check --gpu "$gpu" '[a-z0-9-]+' "a type such as nvidia-h100-80gb"
    check --hosts "$hosts" '[1-9][0-9]{0,3}' "a number of nodes"
    check --gpus-per-host "$gpus_per_host" '[1-9][0-9]?' "a number of GPUs"
  fi
  check_training /shared
}

# Checks a slice of TPUs, and counts its hosts.
check_tpus() {
  local count='[1-9][0-9]{0,3}' total
  check --tpu "$tpu" '[a-z0-9-]+' "a type such as tpu-v5-lite-podslice"
  check --topology "$topology" "${count}(x${count}){1,2}" \
    "a topology such as 4x4 or 2x2x4"
  check --chips-per-host "$chips_per_host" "$count" "a number of chips"
  if [ -n "$hosts" ]; then
    fail "--hosts=$hosts goes with --gpu: --topology and --chips-per-host give" \
      "the hosts of TPUs"
  fi
  total=$((${topology//x/*}))
  if [ $((total % chips_per_host)) -ne 0 ]; then
    fail "--topology=$topology has $total chips: possible for" \
      "--chips-per-host=$chips_per_host is a multiple of it"
  fi
  hosts=$((total / chips_per_host))
}

run() {
  if [ -n "$dry_run" ]; then
    echo "$(quoted "${kubectl[@]}" create --filename=-) <<'END'"
    jobset
    echo END
  else
    jobset | perform "${kubectl[@]}" create --filename=-
  fi
}

status() {
  perform "${kubectl[@]}" get "jobsets/$name"
  perform "${kubectl[@]}" get pods --output=wide \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

log() {
  local index=batch.kubernetes.io/job-completion-index
  perform "${kubectl[@]}" logs --follow --tail=-1 --container=main \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,$index=0"
}

delete() { perform "${kubectl[@]}" delete "jobsets/$name"; }

# Prints strings as a list in YAML. Kubernetes takes $(…) for a variable unless
# it is written $$(…).
list() {
  # shellcheck disable=SC2016
  local item separator="" open='$(' escaped='$$('
  for item in "$@"; do
    item=${item//\\/\\\\}
    item=${item//\"/\\\"}
    printf '%s"%s"' "$separator" "${item//"$open"/"$escaped"}"
    separator=", "
  done
}

# Prints launch/jobset.yaml with the values of its {{variables}}.
# shellcheck disable=SC2034 # "${!variable}" uses them
jobset() {
  local placement="" mounting="" nodes devices volume arguments processes=""
  local text variable gke=cloud.google.com/gke
  if [ -n "$tpu" ]; then
    # All hosts of a slice belong to one node pool.
    placement="alpha.jobset.sigs.k8s.io/exclusive-topology: $gke-nodepool"
    nodes="$gke-tpu-accelerator: \"$tpu\", $gke-tpu-topology: \"$topology\""
    devices="google.com/tpu: $chips_per_host"
  else
    nodes="$gke-accelerator: \"$gpu\""
    devices="nvidia.com/gpu: $gpus_per_host"
    processes=$(processes)
  fi
  if [ -n "$bucket" ]; then
    mounting='gke-gcsfuse/volumes: "true"'
    # A host must not cache what it knows of a file that another one writes.
    volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes:
      {bucketName: \"$bucket\", mountOptions: \"implicit-dirs,\
metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0\"}}"
  else
    volume="persistentVolumeClaim: {claimName: \"$claim\"}"
  fi
  if [ "$hosts" -gt 1 ]; then
    training+=(--distributed)
  fi
  arguments=$(list "${training[@]}")
  text=$(<launch/jobset.yaml) # the arguments come last: they may hold {{…}}
  for variable in name placement restarts hosts mounting service_account nodes \
    image processes devices volume arguments; do
    text=${text//"{{$variable}}"/"${!variable}"}
  done
  printf '%s\n' "$text"
}

# GKE tells JAX the hosts of TPUs (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES). For
# GPUs JAX would have to ask Kubernetes, which takes a package and permission;
# these variables tell it. JobSet's pods are called NAME-hosts-0-INDEX.NAME.
processes() {
  local index="metadata.annotations['batch.kubernetes.io/job-completion-index']"
  [ "$hosts" -gt 1 ] || return 0
  printf '{name: JAX_COORDINATOR_ADDRESS, value: "%s"},
    {name: JAX_NUM_PROCESSES, value: "%s"}, {name: JAX_PROCESS_ID,
    valueFrom: {fieldRef: {fieldPath: "%s"}}}' \
    "$name-hosts-0-0.$name:8476" "$hosts" "$index"
}

main "$@"
