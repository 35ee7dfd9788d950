"""Shared by the tests of launch/: fake executables, and what they are given."""

import pathlib
import shlex
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).parent.parent
BASH = shutil.which("bash")
RUN = ("--config=configs/pretrain.py:vit,cifar10", "--workdir=/shared/A")
TPUS = ("--name=vit", "--image=host/vit:1", "--tpu=tpu-v5-lite-podslice")
TPUS += ("--topology=4x4", "--bucket=my-bucket", *RUN)
GPUS = ("--name=vit", "--image=host/vit:1", "--gpu=nvidia-h100-80gb")
GPUS += ("--hosts=2", "--claim=disk", *RUN)
# Stands for gcloud and its like: keeps what it is given, a line for each call,
# and does what the test has put beside it.
FAKE = """#!/usr/bin/env bash
here=$(dirname "$0")
name=$(basename "$0")
printf '%s' "$name" >>"$here/calls"
printf ' %q' "$@" >>"$here/calls"
echo >>"$here/calls"
if [ -e "$here/$name.sh" ]; then source "$here/$name.sh"; fi
"""
# What the scripts need of Unix. No real gcloud is to be found beside it.
UNIX = ["awk", "basename", "bash", "cat", "dirname", "grep", "head", "id"]
UNIX += ["sed", "sleep", "touch"]


def printed(text):
  """The commands of a dry run, without its comments."""
  lines = text.splitlines()
  return [shlex.split(x) for x in lines if not x.startswith("#")]


def eventually(condition):
  for _ in range(200):
    if condition():
      return True
    time.sleep(0.05)
  return False


class Tools:
  """A folder that is all of PATH: a little of Unix, and fake executables."""

  def __init__(self, folder):
    self.folder = folder
    folder.mkdir()
    for name in UNIX:
      (folder / name).symlink_to(shutil.which(name))

  def add(self, *names):
    for name in names:
      (self.folder / name).write_text(FAKE)
      (self.folder / name).chmod(0o755)

  def answer(self, name, script):
    """Bash that a fake runs in the end, with its own arguments."""
    (self.folder / f"{name}.sh").write_text(script)

  def calls(self):
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [shlex.split(line) for line in lines]

  def run(self, script, *args, cwd=ROOT, **env):
    return subprocess.run(
      [BASH, str(ROOT / "launch" / script), *args],
      cwd=cwd,
      env={"PATH": str(self.folder), "HOME": "/", **env},
      capture_output=True,
      text=True,
      timeout=60,
    )
