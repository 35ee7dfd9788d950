"""Ahead-of-time compilation targets."""

import functools
import importlib.metadata
import math
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.topologies import get_topology_desc

from vit_ssl_jax.errors import UserError


class Chip(NamedTuple):
  """Memory in bytes, its bandwidth in bytes a second, the clock in Hz."""

  memory: float
  bandwidth: float
  clock: float | None
  topologies: tuple[str, ...]  # the smallest first


# Bandwidths and clocks follow from what Google publishes of the chips
# (cloud.google.com/tpu/docs/system-architecture-tpu-vm); the v5e's compiler
# leaves 15.75 of 16 GiB. The H100 is NVIDIA's SXM board.
CHIPS = {
  "v5e": Chip(15.75 * 2**30, 819e9, 1.5e9, ("2x4", "8x8", "16x16")),
  "v5p": Chip(95 * 2**30, 2765e9, 1.75e9, ("2x2x2", "4x4x4", "4x8x8")),
  "v6e": Chip(31.25 * 2**30, 1600e9, 1.75e9, ("2x4", "8x8", "16x16")),
  "h100": Chip(80e9, 3.35e12, None, ("1x1x1",)),
}


def find(target, chips):
  """The chip of a target and its smallest topology with enough chips."""
  name, _, shape = target.partition(":")
  if name not in CHIPS or not re.fullmatch(r"(\d+(x\d+)*)?", shape):
    raise UserError(
      f"--compile_for={target!r}: possible are {', '.join(CHIPS)}, with a"
      " topology such as v5e:2x4"
    )
  for topology in [shape] if shape else CHIPS[name].topologies:
    most = math.prod(map(int, topology.split("x")))
    if chips in [2**i for i in range(most.bit_length())]:
      return name, topology
  powers = f"powers of 2 from 1 to {most}"
  raise UserError(f"--chips={chips}: possible for {target} are {powers}")


def compiler(name):
  """A chip's compiler and its version; a UserError if it is missing."""
  gpu = ("jax-cuda13-plugin", "cuda13")
  package, extra = gpu if name == "h100" else ("libtpu", "tpu")
  try:
    return f"{package} {importlib.metadata.version(package)}"
  except importlib.metadata.PackageNotFoundError as e:
    raise UserError(
      f"--compile_for={name} needs its compiler: pip install 'jax[{extra}]'"
    ) from e


@functools.cache
def devices_of(name, topology):
  """The devices of a topology description."""
  set_flags()
  if name != "h100":
    return get_topology_desc(f"{name}:{topology}", "tpu").devices
  importlib.import_module("jax_plugins.xla_cuda13")
  jax.devices()  # JAX finds the compiler when it looks for devices
  target = Path(__file__).with_name("h100.txtpb").read_text()
  options = {"topology": topology, "target_config": target}
  return get_topology_desc(topology, "cuda", **options).devices


@functools.cache
def set_flags():
  """Sets compilers' flags; the TemporaryDirectory of the TPU's schedules."""
  os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  )
  flags = os.environ.get("XLA_FLAGS", "")
  # Triton would autotune on a device.
  os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false"
  folder = tempfile.TemporaryDirectory()
  os.environ["LIBTPU_INIT_ARGS"] = (
    f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder.name}"
    " --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
  )
  return folder
