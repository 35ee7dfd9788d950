"""Compiles a step for accelerators that need not be there."""

import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType

from vit_ssl_jax.benchmark import program, steps
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.report import tables
from vit_ssl_jax.train import trial


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator.

  Attributes:
    peak: FLOP/s of products in bfloat16.
    memory: bytes.
    rate: of a TPU its clock in Hz; of a GPU its memory's bytes a second.
    topologies: that are known here, the smallest first.
  """

  peak: float
  memory: float
  rate: float
  topologies: tuple[str, ...]


# Clocks follow from the peaks and the matrix units that Google publishes
# (cloud.google.com/tpu/docs/system-architecture-tpu-vm); the v5e's compiler
# leaves 15.75 of 16 GiB. The H100's figures are NVIDIA's, of the SXM board.
CHIPS = {
  "v5e": Chip(197e12, 15.75 * 2**30, 1.5e9, ("2x4", "8x8", "16x16")),
  "v5p": Chip(459e12, 95 * 2**30, 1.75e9, ("2x2x2", "4x4x4", "4x8x8")),
  "v6e": Chip(918e12, 31.25 * 2**30, 1.75e9, ("2x4", "8x8", "16x16")),
  "h100": Chip(989e12, 80e9, 3.35e12, ("1x1x1",)),
}
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def find(target, chips):
  """A chip's name and a topology that has enough of them.

  Args:
    target: such as "v5e:2x4", or "v5e" for the smallest that does.
    chips: how many.

  Raises:
    UserError: there is no such chip or topology, or it is too small.
  """
  name, _, given = target.partition(":")
  if name not in CHIPS:
    known = ", ".join(CHIPS)
    raise UserError(f"--compile_for={target}: possible are {known}")
  if given and not re.fullmatch(r"\d+(x\d+)*", given):
    raise UserError(f"--compile_for={target}: a topology looks like v5e:2x4")
  possible = [given] if given else CHIPS[name].topologies
  sizes = {x: math.prod(map(int, x.split("x"))) for x in possible}
  most = max(sizes.values())
  if not 1 <= chips <= most:
    raise UserError(f"--chips={chips}: {target} has 1 to {most} here")
  return name, next(x for x in possible if sizes[x] >= chips)


def check(target, config, chips, parallel):
  """Raises a UserError where `compile_step` cannot take its arguments."""
  find(target, chips)
  if parallel not in ("data", "fsdp"):
    raise UserError(f"--parallel={parallel}: possible are data, fsdp")
  if config.batch_size % chips:
    raise UserError(
      f"batch_size={config.batch_size} is not a multiple of {chips} chips"
    )


@functools.cache
def devices_of(name, topology):
  """The devices of a topology description.

  Raises:
    UserError: the compiler is not installed.
  """
  package = "jax_plugins.xla_cuda13" if name == "h100" else "libtpu"
  if not importlib.util.find_spec(package):
    extra = "cuda13" if name == "h100" else "tpu"
    raise UserError(
      f"--compile_for={name} needs its compiler: pip install 'jax[{extra}]'"
    )
  if name != "h100":
    os.environ.update(ENVIRONMENT)
    dump_schedules()
    return topologies.get_topology_desc(
      platform="tpu", topology_name=f"{name}:{topology}"
    ).devices
  flags = os.environ.get("XLA_FLAGS", "")
  # Triton would look for its fastest tiles on a device.
  os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false"
  importlib.import_module(package)
  jax.devices()  # JAX finds the compiler when it looks for devices
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=topology,
    topology=topology,
    target_config=Path(__file__).with_name("h100.txtpb").read_text(),
  ).devices


@functools.cache
def dump_schedules():
  """Has the TPU's compiler write kernels' instructions to a folder of ours."""
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
    The figures, a dict that JSON can hold; see the command's help.
  """
  name, topology = find(target, chips)
  chip = CHIPS[name]
  package = "jax-cuda13-plugin" if name == "h100" else "libtpu"
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "bfloat16"
  shape = (1, chips) if parallel == "fsdp" else (chips, 1)
  devices = np.array(devices_of(name, topology)[:chips]).reshape(shape)
  mesh = jax.sharding.Mesh(
    devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
  )
  figures = {
    "target": f"{name}:{topology}",
    "chips": chips,
    "parallel": parallel,
    **steps.describe(config),
    "date": datetime.date.today().isoformat(),
    "compiler": f"{package} {importlib.metadata.version(package)}",
  }
  make_stage = steps.STAGES[config.stage].make_stage
  traced, _, _ = trial.trace(config, make_stage, steps.CLASSES, mesh)
  with jax.set_mesh(mesh):
    lowered = traced.lower()
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    used = re.search(r"(?:Used |\()([\d.]+)([KMG])(?: of|\) exceeds)", str(e))
    if "RESOURCE_EXHAUSTED" not in str(e) or not used:
      raise
    memory = int(float(used[1]) * UNITS[used[2]])
    return figures | {"fits": False, "memory_bytes": memory}
  figures["compile_seconds"] = time.perf_counter() - began
  memory = steps.memory_bytes(compiled)
  figures |= {"fits": memory <= chip.memory, "memory_bytes": memory}
  if name == "h100":
    seconds_of = program.gpu_seconds(chip.rate)
  else:
    folder = Path(dump_schedules().name)
    seconds_of = program.tpu_seconds(folder, chip.rate)
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
    "compile_seconds", "parts_ms",
  )  # fmt: skip

  def line(row):
    parts = list(row.get("parts_ms", {}).items())[:4]
    shown = ", ".join(f"{name} {ms:.1f}" for name, ms in parts)
    shown = row | {"GB": row["memory_bytes"] / 1e9, "parts_ms": shown}
    return map(shown.get, columns)

  return tables.table(columns, map(line, rows))
