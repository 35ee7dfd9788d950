"""Compiles a step for accelerators that need not be there."""

import datetime
import functools
import importlib.metadata
import math
import os
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from vit_ssl_jax.benchmark import program, steps
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.report import tables
from vit_ssl_jax.train import trial


class Chip(NamedTuple):
  """An accelerator."""

  peak: float  # FLOP/s of products in bfloat16
  memory: float  # bytes
  bandwidth: float  # of the memory, in bytes a second
  clock: float | None  # in Hz, of a TPU
  topologies: tuple[str, ...]  # that are known here, the smallest first


# Clocks follow from the peaks and the matrix units that Google publishes
# (cloud.google.com/tpu/docs/system-architecture-tpu-vm), as bandwidths are; the
# v5e's compiler leaves 15.75 of 16 GiB. The H100's figures are NVIDIA's, of the
# SXM board.
CHIPS = {
  "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 1.5e9, ("2x4", "8x8", "16x16")),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1.75e9, ("2x2x2", "4x4x4", "4x8x8")),
  "v6e": Chip(918e12, 31.25 * 2**30, 1600e9, 1.75e9, ("2x4", "8x8", "16x16")),
  "h100": Chip(989e12, 80e9, 3.35e12, None, ("1x1x1",)),
}
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find(target, chips):
  """A chip's name and the smallest topology that has enough of them.

  Args:
    target: such as "v5e", or "v5e:2x4" for this topology alone.
    chips: how many.

  Raises:
    UserError: there is no such chip, or not as many.
  """
  name, _, given = target.partition(":")
  if name not in CHIPS or not re.fullmatch(r"(\d+(x\d+)*)?", given):
    raise UserError(
      f"--compile_for={target}: possible are {', '.join(CHIPS)}, and a topology"
      " looks like v5e:2x4"
    )
  for topology in [given] if given else CHIPS[name].topologies:
    most = math.prod(map(int, topology.split("x")))
    if chips in [2**i for i in range(most.bit_length())]:
      return name, topology
  powers = f"powers of 2 from 1 to {most}"
  raise UserError(f"--chips={chips}: possible for {target} are {powers}")


def check(target, config, chips):
  """Raises a UserError where `compile_step` cannot take its arguments."""
  compiler(find(target, chips)[0])
  count = config.batch_size
  if count % chips:
    raise UserError(f"batch_size={count} is not a multiple of {chips} chips")


def compiler(name):
  """A chip's compiler and its version; a UserError where it is missing."""
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
  platform, options, full_name = "tpu", {}, f"{name}:{topology}"
  if name == "h100":
    importlib.import_module("jax_plugins.xla_cuda13")
    jax.devices()  # JAX finds the compiler when it looks for devices
    about = Path(__file__).with_name("h100.txtpb").read_text()
    platform, full_name = "cuda", topology
    options = {"topology": topology, "target_config": about}
  return topologies.get_topology_desc(full_name, platform, **options).devices


@functools.cache
def set_flags():
  """Sets what all compilers read once, before any has compiled.

  Returns:
    The folder to which the TPU's then writes the instructions of kernels.
  """
  os.environ.update(ENVIRONMENT)
  flags = os.environ.get("XLA_FLAGS", "")
  # Triton would look for its fastest tiles on a device.
  os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false"
  folder = tempfile.TemporaryDirectory()
  os.environ["LIBTPU_INIT_ARGS"] = (
    f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder.name}"
    " --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
  )
  return folder


def compile_step(target, config, chips, parallel="data"):
  """Compiles a stage's step.

  Args:
    target, chips: of `find`.
    config: of either stage, with mean and std; "auto" is bfloat16.
    parallel: "data", or "fsdp" over all chips.

  Returns:
    The figures of the command's help, a dict that JSON can hold.
  """
  name, topology = find(target, chips)
  chip, folder = CHIPS[name], Path(set_flags().name)
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "bfloat16"
  shape = (1, chips) if parallel == "fsdp" else (chips, 1)
  mesh = meshes.mesh_of(shape, devices_of(name, topology)[:chips])
  figures = {
    "target": f"{name}:{topology}",
    "chips": chips,
    "parallel": parallel,
    **steps.describe(config),
    "date": datetime.date.today().isoformat(),
    "compiler": compiler(name),
  }
  make_stage = steps.STAGES[config.stage].make_stage
  traced, _, _ = trial.trace(config, make_stage, steps.CLASSES, mesh)
  with jax.set_mesh(mesh):
    lowered = traced.lower()
  for left in folder.iterdir():  # of another step
    left.unlink()
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    used = re.search(r"(?:Used |\()([\d.]+)([KMG])(?: of|\) exceeds)", str(e))
    if "RESOURCE_EXHAUSTED" not in str(e) or not used:
      raise
    memory = float(used[1]) * 2 ** (10 * " KMG".index(used[2]))
    return figures | {"fits": False, "memory_bytes": int(memory)}
  figures["compile_seconds"] = time.perf_counter() - began
  memory = steps.memory_bytes(compiled)
  figures |= {"fits": memory <= chip.memory, "memory_bytes": memory}
  if name == "h100":
    seconds_of = program.gpu_seconds(chip.bandwidth)
  else:
    seconds_of = program.tpu_seconds(folder, chip.clock, chip.bandwidth)
  figures |= program.figures(compiled.as_text(), seconds_of, chips)
  seconds = figures["estimated_ms"] / 1e3
  flops = program.flops(traced.jaxpr.jaxpr) / chips
  return figures | {
    "images_per_second": config.batch_size / seconds,
    "share_of_peak": flops / seconds / chip.peak,
  }


def table(rows):
  """The figures as a table, with the four costliest parts."""
  columns = (
    "target", "arch", "stage", "parallel", "chips", "batch_size", "fits",
    "GB", "estimated_ms", "images_per_second", "share_of_peak", "link_bytes",
    "compile_seconds", "costliest",
  )  # fmt: skip

  def cells(row):
    parts = list(row.get("parts_ms", {}).items())[:4]
    costliest = ", ".join(f"{name} {ms:.1f}" for name, ms in parts)
    row = row | {"GB": row["memory_bytes"] / 1e9, "costliest": costliest}
    return [row.get(x) for x in columns]

  return tables.table(columns, map(cells, rows))
