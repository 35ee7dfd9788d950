#!/usr/bin/env bash
# What launch/tpu_vm.sh has each worker of a slice do; it runs there.
#
#   bash launch/tpu_worker.sh install gs://BUCKET | SERVER:/EXPORT
#   bash launch/tpu_worker.sh start -m main …
#   bash launch/tpu_worker.sh status
#   bash launch/tpu_worker.sh stop
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SHARED=/shared

install() {
  share "$1"
  # The VMs' own Python may be older than the project's. uv brings one.
  if ! [ -x .venv/bin/python ]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
    "$HOME/.local/bin/uv" python install 3.12
    PYTHON=$("$HOME/.local/bin/uv" python find 3.12)
    export PYTHON
  fi
  EXTRAS="[tpu]" bash launch/environment.sh
}

# Mounts a bucket or an NFS export as /shared, once.
share() {
  if mountpoint -q "$SHARED"; then
    return
  fi
  sudo mkdir -p "$SHARED"
  case $1 in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      sudo chown "$(id -u):$(id -g)" "$SHARED"
      # What a host knows of a file must not outlive what another makes of it.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "${1#gs://}" "$SHARED"
      ;;
    *)
      apt_get nfs-common
      sudo mount -t nfs -o nofail "$1" "$SHARED"
      ;;
  esac
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local site=https://packages.cloud.google.com/apt
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_get gcsfuse
}

# A VM that has just started may still be updating itself.
apt_get() {
  sudo apt-get -o DPkg::Lock::Timeout=600 update
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y "$1"
}

running() {
  [ -e run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null
}

# The run has a session of its own, so that it does not end with the connection.
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
  local last
  last=$(tail -n 1 run.log 2>/dev/null | tr '\r' '\n' | tail -n 1 || true)
  if running; then
    echo "$(hostname): runs: $last"
  else
    echo "$(hostname): does not run: $last"
    return 1
  fi
}

# A signal makes the run save a checkpoint and end.
stop() {
  local waited=0
  if ! running; then
    echo "$(hostname): does not run"
    return
  fi
  kill -TERM "$(cat run.pid)"
  while running; do
    if [ "$waited" -ge 600 ]; then
      echo "error: $(hostname): still runs 10 minutes after the signal" >&2
      exit 1
    fi
    sleep 1
    waited=$((waited + 1))
  done
  echo "$(hostname): stopped"
}

case ${1:-} in
  install | start | status | stop) "$@" ;;
  *)
    echo "error: unknown command ${1:-}: possible are install, start, status" \
      "and stop" >&2
    exit 2
    ;;
esac
