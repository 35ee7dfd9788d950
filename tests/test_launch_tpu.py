"""Slices of TPU VMs: what gcloud is told, and what their workers do."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tarfile

import pytest
from launching import BASH, ROOT, RUN, eventually, printed

SLICE = ("--name=vit", "--zone=us-west4-a")
KIND = ("--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite")


def test_tpu_create_and_delete(tools):
  dry = tools.run("tpu_vm.sh", "create", *SLICE, *KIND, "--dry-run")
  assert dry.stdout == (
    "gcloud compute tpus tpu-vm create vit --zone=us-west4-a"
    " --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite\n"
  )
  spot = ("--spot", "--queued", "--project=mine")
  dry = tools.run("tpu_vm.sh", "create", *SLICE, *KIND, *spot, "--dry-run")
  assert dry.stdout == (
    "gcloud compute tpus queued-resources create vit --zone=us-west4-a"
    " --project=mine --node-id=vit --accelerator-type=v5litepod-16"
    " --runtime-version=v2-alpha-tpuv5-lite --spot\n"
  )
  dry = tools.run("tpu_vm.sh", "delete", *SLICE, "--queued", "--dry-run")
  assert dry.stdout == (
    "gcloud compute tpus queued-resources delete vit --zone=us-west4-a"
    " --force --quiet\n"
  )


@pytest.mark.parametrize(
  "args",
  [
    ["create", *SLICE, *KIND, "--spot"],
    ["create", *SLICE, *KIND, "--queued"],
    ["install", *SLICE, "--nfs=10.0.0.2:/data"],
    ["install", *SLICE, "--bucket=my-bucket"],
    ["run", *SLICE, *RUN, "--config.init_from=/shared/it's here"],
    ["status", *SLICE],
    ["log", *SLICE, "--project=mine"],
    ["stop", *SLICE],
    ["delete", *SLICE],
    ["delete", *SLICE, "--queued"],
  ],
  ids=lambda args: args[0],
)
def test_tpu_does_what_the_dry_run_prints(args, tools):
  dry = tools.run("tpu_vm.sh", *args, "--dry-run")
  assert dry.returncode == 0
  assert tools.calls() == []  # and there is no gcloud that it could need
  tools.add("gcloud", "tar")
  tools.answer("gcloud", '[ "$1" != storage ] || echo True')
  done = tools.run("tpu_vm.sh", *args)
  assert done.returncode == 0, done.stderr
  assert tools.calls() == printed(dry.stdout) != []


def test_tpu_install_copies_what_installing_needs(tools, tmp_path):
  tools.add("gcloud")
  for name in ("tar", "gzip"):
    (tools.folder / name).symlink_to(shutil.which(name))
  args = ("install", *SLICE, "--nfs=10.0.0.2:/data")
  result = tools.run("tpu_vm.sh", *args, TMPDIR=str(tmp_path))
  assert result.returncode == 0, result.stderr
  [copy, _] = tools.calls()
  with tarfile.open(copy[copy.index("scp") + 1]) as archive:
    names = set(archive.getnames())
  needed = {"main.py", "setup.py", "README.md", "configs/pretrain.py"}
  assert needed | {"vit_ssl_jax/main.py", "launch/tpu_worker.sh"} <= names
  assert not any("__pycache__" in name for name in names)


def test_tpu_run_starts_training_on_all_workers(tools):
  note = "--config.init_from=/shared/it's here"
  dry = tools.run("tpu_vm.sh", "run", *SLICE, *RUN, note, "--dry-run")
  [command] = printed(dry.stdout)
  assert "--worker=all" in command
  there = command[-1].removeprefix("--command=")
  start = ["bash", "vit-ssl-jax/launch/tpu_worker.sh", "start", "-m", "main"]
  assert shlex.split(there) == [*start, *RUN, note, "--distributed"]


def resume(tools, states, running):
  """Calls resume where a slice has these states, one after the other.

  Returns:
    The result, and the calls in short: what of the slice, or of the workers.
  """
  tools.add("gcloud", "tar")
  (tools.folder / "states").write_text("".join(s + "\n" for s in states))
  tools.answer(
    "gcloud",
    """
    case "$*" in
      *hierarchical*) echo True ;;
      *" list "*)
        printf 'other READY\\n'
        printf 'vit %s\\n' "$(head -n 1 "$here/states")" | grep -v ' $'
        sed -i 1d "$here/states" ;;
      *"sh status"*) exit RUNNING ;;
    esac
    """.replace("RUNNING", "0" if running else "1"),
  )
  args = ("--bucket=b1", "--spot", *SLICE, *KIND, *RUN)
  result = tools.run("tpu_vm.sh", "resume", *args, POLL_SECONDS="0")
  short = []
  for call in tools.calls():
    words = [w for w in call if not w.startswith("--")]
    if "ssh" in words:
      remote = call[-1].partition("tpu_worker.sh ")[2]
      short.append(remote.split()[0])
    elif "tpus" in words:
      short.append(words[words.index("tpus") + 2])
  return result, short


START = ["status", "scp", "install", "stop", "start"]


@pytest.mark.parametrize(
  ("states", "running", "expected"),
  [
    (["READY"], True, ["list", "status"]),
    (["READY"], False, ["list", *START]),
    (
      ["PREEMPTED", "", "READY"],
      False,
      ["list", "delete", "list", "create", "list"],
    ),
    (["DELETING", "", "READY"], False, ["list", "list", "create", "list"]),
    (["", "CREATING", "READY"], False, ["list", "create", "list", "list"]),
  ],
)
def test_tpu_resume_does_what_is_missing(states, running, expected, tools):
  result, short = resume(tools, states, running)
  assert result.returncode == 0, result.stderr
  if short[-1] == "start" and expected[-1] != "start":
    expected = [*expected, *START]
  assert short == expected


def test_tpu_resume_ends_where_a_new_slice_fails_at_once(tools):
  result, short = resume(tools, ["", "FAILED"], False)
  assert result.returncode == 2
  assert short == ["list", "create", "list"]
  assert "error: the slice vit is FAILED" in result.stderr


def test_tpu_resume_makes_nothing_where_gcloud_fails(tools):
  tools.add("gcloud")
  tools.answer("gcloud", '[ "$1" = storage ] && echo True || exit 1')
  args = ("--bucket=b1", *SLICE, *KIND, *RUN)
  result = tools.run("tpu_vm.sh", "resume", *args)
  assert result.returncode == 2
  assert "gcloud does not say which slices there are" in result.stderr
  assert not any("create" in call for call in tools.calls())


@pytest.mark.parametrize("command", ["install", "resume"])
def test_tpu_refuses_a_bucket_without_folders(command, tools):
  tools.add("gcloud", "tar")
  args = ("--bucket=flat", *SLICE, *KIND, *RUN)
  result = tools.run("tpu_vm.sh", command, *args)
  assert result.returncode == 2
  assert "gs://flat has no hierarchical namespace" in result.stderr
  assert len(tools.calls()) == 1


@pytest.fixture
def worker(tmp_path, tools):
  """A worker's copy of the project, whose Python only waits for a signal."""
  folder = tmp_path / "home" / "vit-ssl-jax"
  (folder / "launch").mkdir(parents=True)
  (folder / ".venv" / "bin").mkdir(parents=True)
  shutil.copy(ROOT / "launch" / "tpu_worker.sh", folder / "launch")
  python = folder / ".venv" / "bin" / "python"
  python.write_text(
    "#!/usr/bin/env bash\n"
    "trap 'echo saved; exit 130' TERM\n"
    'echo "$@"\n'
    "while true; do sleep 0.05; done\n"
  )
  python.chmod(0o755)
  yield folder
  pid = folder / "run.pid"
  if pid.exists():
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(pid.read_text()), signal.SIGKILL)


def on_worker(folder, *args):
  return subprocess.run(
    [BASH, "vit-ssl-jax/launch/tpu_worker.sh", *args],
    cwd=folder.parent,
    capture_output=True,  # waits until nothing holds the connection
    text=True,
    timeout=60,
  )


def test_worker_starts_once_in_a_session_of_its_own_and_stops(worker):
  log = worker / "run.log"
  assert on_worker(worker, "status").returncode == 1
  assert on_worker(worker, "stop").returncode == 0
  first = on_worker(worker, "start", "-m", "main", "--config.x=a b")
  assert first.stdout.endswith(": started\n")
  pid = int((worker / "run.pid").read_text())
  assert eventually(lambda: log.read_text() == "-m main --config.x=a b\n")
  assert eventually(lambda: os.getsid(pid) == pid)
  again = on_worker(worker, "start", "-m", "main")
  assert again.stdout.endswith(": runs already\n")
  assert int((worker / "run.pid").read_text()) == pid
  status = on_worker(worker, "status")
  assert (status.returncode, status.stdout.count(": runs: -m main")) == (0, 1)
  assert on_worker(worker, "stop").stdout.endswith(": stopped\n")
  assert log.read_text().endswith("saved\n")
  status = on_worker(worker, "status")
  assert status.returncode == 1
  assert "does not run: saved" in status.stdout


@pytest.mark.parametrize(
  ("share", "mount"),
  [
    (
      "gs://b1",
      "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0"
      " --metadata-cache-negative-ttl-secs=0 b1 /shared",
    ),
    (
      "10.0.0.2:/data",
      "sudo mount -t nfs -o nofail 10.0.0.2:/data /shared",
    ),
  ],
)
def test_worker_mounts_what_is_shared_once(share, mount, worker, tools):
  (worker / "launch" / "environment.sh").write_text('echo "$EXTRAS"\n')
  tools.add("sudo", "gcsfuse", "mountpoint")
  tools.answer("mountpoint", "exit 1")
  script = worker / "launch" / "tpu_worker.sh"
  result = tools.run(script, "install", share)
  assert (result.returncode, result.stdout) == (0, "[tpu]\n")
  assert mount.split() in tools.calls()
  (tools.folder / "calls").unlink()
  tools.answer("mountpoint", "exit 0")
  assert tools.run(script, "install", share).returncode == 0
  assert tools.calls() == [["mountpoint", "-q", "/shared"]]
