"""Estimates of steps compiled ahead of time."""

import datetime
import re
import time
from pathlib import Path

import jax

from vit_ssl_jax import kernels, train
from vit_ssl_jax.benchmark import program, steps, topologies
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import timing


def estimates(target, config, chips, parallel):
  """Yields the figures for each number of chips, after checking all of them."""
  for count in chips:
    topologies.compiler(topologies.find(target, count)[0])
    if config.batch_size % count:
      raise UserError(
        f"batch_size={config.batch_size} must be a multiple of {count} chips"
      )
  for count in chips:
    yield estimate(target, config, count, parallel)


def estimate(target, config, chips, parallel="data"):
  """Compiles a step and estimates the figures of the command's help."""
  name, topology = topologies.find(target, chips)
  chip, dump = topologies.CHIPS[name], Path(topologies.set_flags().name)
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "bfloat16"
  shape = (1, chips) if parallel == "fsdp" else (chips, 1)
  mesh = meshes.mesh_of(shape, topologies.devices_of(name, topology)[:chips])
  make_stage = train.stage_of(config).make_stage
  kernels.use("xla" if config.get("kernels") == "xla" else "unchecked")
  traced, _, _ = timing.trace(config, make_stage, steps.CLASSES, mesh)
  with jax.set_mesh(mesh):
    lowered = traced.lower()
  for file in dump.iterdir():  # of an earlier step
    file.unlink()
  figures = {
    "target": f"{name}:{topology}",
    "chips": chips,
    "parallel": parallel,
    **steps.describe(config),
    "date": datetime.date.today().isoformat(),
    "compiler": topologies.compiler(name),
  }
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
  hlo = program.parse(compiled.as_text())
  if name == "h100":
    figures["bytes_accessed"] = program.gpu_bytes(hlo)
    seconds = figures["bytes_accessed"] / chip.bandwidth
  else:
    cycles = program.kernel_cycles(dump, hlo, traced.jaxpr.jaxpr)
    seconds = program.tpu_seconds(hlo, cycles, chip)
  return figures | {
    "estimated_ms": 1e3 * seconds,
    "images_per_second": config.batch_size / seconds,
    "link_bytes": program.link_bytes(hlo, chips),
  }
