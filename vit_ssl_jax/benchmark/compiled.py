"""Compiles a step for accelerators that need not be there."""

import datetime
import re
import time
from pathlib import Path

import jax

from vit_ssl_jax import cli
from vit_ssl_jax.benchmark import program, steps, topologies
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import timing


def check(target, config, chips):
  """Raises a UserError where `compile_step` cannot take its arguments."""
  topologies.compiler(topologies.find(target, chips)[0])
  count = config.batch_size
  if count % chips:
    raise UserError(f"batch_size={count} is not a multiple of {chips} chips")


def compile_step(target, config, chips, parallel="data"):
  """Compiles a stage's step.

  Args:
    target, chips: of `topologies.find`.
    config: of either stage, with mean and std; "auto" is bfloat16.
    parallel: "data", or "fsdp" over all chips.

  Returns:
    The figures of the command's help, a dict that JSON can hold.
  """
  name, topology = topologies.find(target, chips)
  chip, folder = topologies.CHIPS[name], Path(topologies.set_flags().name)
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "bfloat16"
  shape = (1, chips) if parallel == "fsdp" else (chips, 1)
  mesh = meshes.mesh_of(shape, topologies.devices_of(name, topology)[:chips])
  figures = {
    "target": f"{name}:{topology}",
    "chips": chips,
    "parallel": parallel,
    **steps.describe(config),
    "date": datetime.date.today().isoformat(),
    "compiler": topologies.compiler(name),
  }
  make_stage = steps.STAGES[config.stage].make_stage
  traced, _, _ = timing.trace(config, make_stage, steps.CLASSES, mesh)
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
  text = compiled.as_text()
  if name == "h100":
    seconds_of = program.gpu_seconds(text, chip.bandwidth)
  else:
    seconds_of = program.tpu_seconds(folder, chip.clock, chip.bandwidth)
  figures |= program.figures(text, seconds_of, chips)
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

  return cli.table(columns, map(cells, rows))
