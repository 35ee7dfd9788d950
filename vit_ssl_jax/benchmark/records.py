"""What a benchmark's figures were made on, and the file that keeps them."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
from importlib import metadata

import jax

from vit_ssl_jax import files

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
ROOT = pathlib.Path(__file__).parents[2]


def write(path, command, figures):
  """Keeps figures as JSON, with what they were made on.

  Args:
    path: the file.
    command: the command line.
    figures: the figures, a list of dicts.
  """
  record = {"command": command, **surroundings(), "figures": figures}
  files.write(path, json.dumps(record, indent=2) + "\n")


def surroundings():
  """The machine, the versions and the commit, as far as they are known."""
  devices = jax.devices()
  return {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "device": devices[0].device_kind,
    "devices": len(devices),
    "platform": jax.default_backend(),
    "platform_version": devices[0].client.platform_version,
    "driver": driver(),
    "cpu": cpu(),
    "cpu_cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "python": platform.python_version(),
    "versions": {name: metadata.version(name) for name in PACKAGES},
    "commit": commit(),
  }


def driver():
  """The version of NVIDIA's driver, or None."""
  path = pathlib.Path("/sys/module/nvidia/version")
  return path.read_text().strip() if path.exists() else None


def cpu():
  """The processor's name, or the machine's kind where it is not known."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
  return names[0] if names else platform.machine()


def commit():
  """The commit of the clone that the code lies in, or None.

  Behind it stands "+" where files differ from it.
  """
  if not (ROOT / ".git").exists():
    return None
  try:
    found = git("rev-parse", "HEAD")
    return found + ("+" if git("status", "--porcelain", "-uno") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def git(*arguments):
  return subprocess.run(
    ["git", "-C", str(ROOT), *arguments],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
