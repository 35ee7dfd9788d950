#!/usr/bin/env bash
# Runs on each worker of a slice, for launch/tpu_vm.sh.
#
#   bash launch/tpu_worker.sh install gs://BUCKET | SERVER:/EXPORT
#   bash launch/tpu_worker.sh start -m main …
#   bash launch/tpu_worker.sh status
#   bash launch/tpu_worker.sh stop
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SHARED=/shared

install() {
  mountpoint -q "$SHARED" || share "$1"
  # The VMs' own Python may be too old. uv installs one.
  if ! [ -x .venv/bin/python ]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
    "$HOME/.local/bin/uv" python install 3.12
    PYTHON=$("$HOME/.local/bin/uv" python find 3.12)
    export PYTHON
  fi
  EXTRAS="[tpu]" bash launch/environment.sh
}

# Mounts a bucket or an NFS export as /shared.
share() {
  sudo mkdir -p "$SHARED"
  if [[ $1 != gs://* ]]; then
    apt_get nfs-common
    sudo mount -t nfs -o nofail "$1" "$SHARED"
    return
  fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo chown "$(id -u):$(id -g)" "$SHARED"
  # A host must not cache what it knows of a file that another one writes.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "${1#gs://}" "$SHARED"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local site=https://packages.cloud.google.com/apt
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_get gcsfuse
}

# Waits for apt: a VM that has just started may still be updating itself.
apt_get() {
  sudo apt-get -o DPkg::Lock::Timeout=600 update
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y "$1"
}

running() { [ -e run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; }

# setsid: the run must not end with the connection.
start() {
  if running; then
    echo "$(hostname): runs already"
    return
  fi
  nohup setsid .venv/bin/python "$@" >>run.log 2>&1 </dev/null &
  echo $! >run.pid
  echo "$(hostname): started"
}

status() {
  local last state=runs
  running || state="does not run"
  last=$(tail -n 1 run.log 2>/dev/null | tr '\r' '\n' | tail -n 1 || true)
  echo "$(hostname): $state: $last"
  [ "$state" = runs ]
}

# SIGTERM makes the run save a checkpoint and end.
stop() {
  local _
  if ! running; then
    echo "$(hostname): does not run"
    return
  fi
  kill -TERM "$(cat run.pid)"
  for _ in {1..6000}; do
    if ! running; then
      echo "$(hostname): stopped"
      return
    fi
    sleep 0.1
  done
  echo "error: $(hostname): still runs 10 minutes after SIGTERM" >&2
  exit 1
}

if ! [[ ${1:-} =~ ^(install|start|status|stop)$ ]]; then
  echo "error: unknown command ${1:-}: possible are install, start, status, stop"
  exit 2
fi >&2
"$@"
