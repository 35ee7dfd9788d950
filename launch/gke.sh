#!/usr/bin/env bash
# Trains on GKE, through kubectl: a JobSet of one pod for each host, on a slice
# of TPUs or on nodes with GPUs.
#
#   bash launch/gke.sh COMMAND --name=NAME [OPTION …]
#
#   run     makes the JobSet
#   status  shows it and its pods
#   log     follows what the first pod says
#   delete  removes it; run makes it anew, and goes on in the same workdir
#
#   --name=NAME               the JobSet's; --namespace=NAME if not kubectl's own
#   --image=IMAGE             run: as launch/Dockerfile makes it
#   --tpu=TYPE --topology=AxB run: TPUs, such as tpu-v5-lite-podslice and 4x4;
#                             --chips-per-host=4 is what a node of theirs has
#   --gpu=TYPE --hosts=N      run: or GPUs, such as nvidia-h100-80gb on 2 nodes;
#                             --gpus-per-host=8 is what each of them has
#   --bucket=NAME             run: /shared is this bucket, which has to have a
#                             hierarchical namespace
#   --claim=NAME              run: or this PersistentVolumeClaim, which all
#                             hosts can write to (ReadWriteMany)
#   --service-account=NAME    run: the pods' account, which may use the bucket
#   --restarts=N              run: how often it is restarted, 100 if left out
#   --config=RECIPE --workdir=/shared/FOLDER --config.KEY=VALUE
#                             run: as for `python -m main`
#   --dry-run                 prints the commands, and runs none
#   --help                    this text
#
# All options may be given to all commands. For example:
#
#   docker build --tag=REGISTRY/vit-ssl-jax --build-arg=EXTRAS=tpu \
#     --file=launch/Dockerfile . && docker push REGISTRY/vit-ssl-jax
#   bash launch/gke.sh run --name=vit --image=REGISTRY/vit-ssl-jax \
#     --tpu=tpu-v5-lite-podslice --topology=4x4 --bucket=my-bucket \
#     --config=configs/pretrain.py:vit,cifar10 --workdir=/shared/A
#
# The cluster needs the JobSet controller (https://jobset.sigs.k8s.io), nodes of
# that kind and, for a bucket, the Cloud Storage FUSE CSI driver. Where a pod
# fails or loses its node, JobSet starts all of them again, and they go on from
# the last checkpoint; a mistake in the command, which no restart mends, ends
# the JobSet. Why the bucket's namespace has to be hierarchical, and how to make
# such a bucket, is in launch/tpu_vm.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh

commands="run, status, log, delete"
options="--name, --namespace, --image, --tpu, --topology, --chips-per-host,"
options="$options --gpu, --hosts, --gpus-per-host, --bucket, --claim,"
options="$options --service-account, --restarts, --dry-run, --help"
name="" namespace="" image="" tpu="" topology="" chips=4 gpu="" hosts="" gpus=8
bucket="" claim="" account=default restarts=100
kubectl=(kubectl)

main() {
  local command=${1:---help}
  case $command in
    --help | -h)
      help launch/gke.sh
      exit 0
      ;;
    run | status | log | delete) shift ;;
    *) fail "unknown command $command: possible are $commands" ;;
  esac
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
  if [ -z "$dry_run" ] && ! command -v kubectl >/dev/null; then
    fail "kubectl is not installed: see https://kubernetes.io/docs/tasks/tools"
  fi
  "$command"
}

parse() {
  local option
  for option in "$@"; do
    case $option in
      --name=*) name=${option#*=} ;;
      --namespace=*) namespace=${option#*=} ;;
      --image=*) image=${option#*=} ;;
      --tpu=*) tpu=${option#*=} ;;
      --topology=*) topology=${option#*=} ;;
      --chips-per-host=*) chips=${option#*=} ;;
      --gpu=*) gpu=${option#*=} ;;
      --hosts=*) hosts=${option#*=} ;;
      --gpus-per-host=*) gpus=${option#*=} ;;
      --bucket=*) bucket=${option#*=} ;;
      --claim=*) claim=${option#*=} ;;
      --service-account=*) account=${option#*=} ;;
      --restarts=*) restarts=${option#*=} ;;
      --dry-run) dry_run=1 ;;
      --help | -h)
        help launch/gke.sh
        exit 0
        ;;
      *) take "$option" "$options" ;;
    esac
  done
}

check_run() {
  check --image "$image" '[A-Za-z0-9._:/@-]+' "an image such as HOST/NAME:TAG"
  check --service-account "$account" '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' \
    "the name of a Kubernetes service account"
  check --restarts "$restarts" '0|[1-9][0-9]{0,5}' "a number"
  if [ -n "$bucket" ] && [ -n "$claim" ] || [ -z "$bucket$claim" ]; then
    fail "the shared folder is --bucket=$bucket, --claim=$claim: possible is" \
      "one of --bucket=NAME and --claim=NAME"
  fi
  if [ -n "$bucket" ]; then
    check --bucket "$bucket" '[a-z0-9][a-z0-9._-]*[a-z0-9]' \
      "a bucket's name, without gs://"
  else
    check --claim "$claim" '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' \
      "the name of a PersistentVolumeClaim"
  fi
  check_devices
  check_training /shared
}

# Checks the accelerator; counts the hosts of a slice of TPUs.
check_devices() {
  local count='[1-9][0-9]{0,3}'
  if [ -n "$tpu" ] && [ -n "$gpu" ] || [ -z "$tpu$gpu" ]; then
    fail "the accelerator is --tpu=$tpu, --gpu=$gpu: possible is one of" \
      "--tpu=TYPE and --gpu=TYPE"
  fi
  if [ -n "$gpu" ]; then
    check --gpu "$gpu" '[a-z0-9-]+' "a type such as nvidia-h100-80gb"
    check --hosts "$hosts" "$count" "a number of nodes"
    check --gpus-per-host "$gpus" "$count" "the number of a node's GPUs"
    return
  fi
  check --tpu "$tpu" '[a-z0-9-]+' "a type such as tpu-v5-lite-podslice"
  check --topology "$topology" "${count}(x${count}){1,2}" \
    "a topology such as 4x4 or 2x2x4"
  check --chips-per-host "$chips" "$count" "the number of a node's chips"
  if [ -n "$hosts" ]; then
    fail "--hosts=$hosts goes with --gpu: the hosts of TPUs are counted from" \
      "--topology and --chips-per-host"
  fi
  local total=$((${topology//x/*}))
  if [ $((total % chips)) -ne 0 ]; then
    fail "--topology=$topology has $total chips: possible for" \
      "--chips-per-host=$chips is what divides them"
  fi
  hosts=$((total / chips))
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

delete() {
  perform "${kubectl[@]}" delete "jobsets/$name"
}

# Prints a string as YAML; Kubernetes would take $(…) in it for a variable.
text() {
  # shellcheck disable=SC2016
  printf '"%s"' "$(printf '%s' "$1" |
    sed -e 's/[\\"]/\\&/g' -e 's/\$(/$$(/g')"
}

# Prints the JobSet. Its pods stand and fall together: none is restarted alone
# (backoffLimit), but all of them are, by the JobSet. Status 2 is a mistake in
# the command, for which it ends.
jobset() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$name"
  annotations: {$(placement)}
spec:
  network:
    enableDNSHostnames: true
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: main, operator: In, values: [2]}
          template:
            metadata:
              annotations: {$(mounting)}
            spec:
              restartPolicy: Never
              serviceAccountName: "$account"
              terminationGracePeriodSeconds: 120
              nodeSelector: {$(nodes)}
              containers:
                - name: main
                  image: "$image"
                  command: [python]
                  args:
$(arguments)
                  env:$(processes)
                  resources:
                    limits: {$(devices)}
                  volumeMounts:
                    - {name: shared, mountPath: /shared}
              volumes:
                - name: shared
                  $(volume)
END
}

# All hosts of a slice have to be of one node pool, which is one slice.
placement() {
  if [ -n "$tpu" ]; then
    printf 'alpha.jobset.sigs.k8s.io/exclusive-topology: '
    printf 'cloud.google.com/gke-nodepool'
  fi
}

# Asks for what mounts the bucket.
mounting() {
  if [ -n "$bucket" ]; then
    printf 'gke-gcsfuse/volumes: "true"'
  fi
}

nodes() {
  if [ -n "$tpu" ]; then
    printf 'cloud.google.com/gke-tpu-accelerator: "%s", ' "$tpu"
    printf 'cloud.google.com/gke-tpu-topology: "%s"' "$topology"
  else
    printf 'cloud.google.com/gke-accelerator: "%s"' "$gpu"
  fi
}

devices() {
  if [ -n "$tpu" ]; then
    printf 'google.com/tpu: %s' "$chips"
  else
    printf 'nvidia.com/gpu: %s' "$gpus"
  fi
}

arguments() {
  local argument
  if [ "$hosts" -gt 1 ]; then
    training+=(--distributed)
  fi
  for argument in "${training[@]}"; do
    printf '                    - %s\n' "$(text "$argument")"
  done
}

# On TPUs JAX finds the hosts by what GKE tells each pod (TPU_WORKER_ID and
# TPU_WORKER_HOSTNAMES). On GPUs it would ask Kubernetes itself, which takes a
# package and a right to; here it is told. A JobSet's pods are called
# JOBSET-hosts-0-INDEX, and found under the JobSet's name.
processes() {
  local field="metadata.annotations['batch.kubernetes.io/job-completion-index']"
  if [ -n "$tpu" ] || [ "$hosts" -eq 1 ]; then
    printf ' []'
    return
  fi
  cat <<END

                    - name: JAX_COORDINATOR_ADDRESS
                      value: "$name-hosts-0-0.$name:8476"
                    - name: JAX_NUM_PROCESSES
                      value: "$hosts"
                    - name: JAX_PROCESS_ID
                      valueFrom: {fieldRef: {fieldPath: "$field"}}
END
}

# What a host knows of a file must not outlive what another host makes of it.
volume() {
  if [ -n "$claim" ]; then
    printf 'persistentVolumeClaim: {claimName: "%s"}' "$claim"
    return
  fi
  cat <<END
csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: "$bucket"
                      mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0,\
metadata-cache:negative-ttl-secs:0"
END
}

main "$@"
