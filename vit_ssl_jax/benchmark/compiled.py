"""Compiles a step for accelerators that need not be there."""

import datetime
import functools
import importlib.metadata
import importlib.util
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
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.report import tables

# Clocks follow from the peaks and the matrix units that Google publishes
# (cloud.google.com/tpu/docs/system-architecture-tpu-vm); the v5e's compiler
# leaves 15.75 of 16 GiB. The H100's figures are NVIDIA's, of the SXM board.
CHIPS = {
  "v5e": program.Chip(1.5e9, 197e12, 15.75 * 2**30),
  "v5p": program.Chip(1.75e9, 459e12, 95 * 2**30),
  "v6e": program.Chip(1.75e9, 918e12, 31.25 * 2**30),
  "h100": program.Chip(None, 989e12, 80e9),
}
TOPOLOGIES = {
  "v5e": ("2x4", "8x8", "16x16"),
  "v5p": ("2x2x2", "4x4x4", "4x8x8"),
  "v6e": ("2x4", "8x8", "16x16"),
  "h100": ("1x1x1",),
}
TARGETS_HELP = (
  "estimate for v5e, v5p or v6e, with a topology such as v5e:2x4 or without,"
  " or h100; several with commas"
)
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def parse_target(text):
  """ "v5e:2x4" -> ("v5e", "2x4"); without a topology that is None.

  Raises:
    UserError: there is no such chip or topology.
  """
  chip, _, topology = text.partition(":")
  if chip not in CHIPS:
    known = ", ".join(CHIPS)
    raise UserError(f"--compile_for={text}: possible are {known}")
  if topology and not re.fullmatch(r"\d+(x\d+)*", topology):
    raise UserError(f"--compile_for={text}: a topology looks like v5e:2x4")
  return chip, topology or None


def size(topology):
  """How many chips a topology such as "2x4" has."""
  return int(np.prod([int(n) for n in topology.split("x")]))


def topology_of(target, chips):
  """The target's topology, or else the smallest one that has the chips."""
  name, given = target
  fitting = [
    x for x in ([given] if given else TOPOLOGIES[name]) if size(x) >= chips
  ]
  if not fitting:
    most = max(size(x) for x in ([given] if given else TOPOLOGIES[name]))
    raise UserError(f"--chips={chips}: {name} has 1 to {most} here")
  return fitting[0]


def check(target, config, chips, parallel):
  """Raises a UserError where a step cannot be laid out."""
  topology_of(target, chips)
  if parallel not in ("data", "fsdp"):
    raise UserError(f"--parallel={parallel}: possible are data, fsdp")
  if chips < 1 or config.batch_size % chips:
    raise UserError(
      f"batch_size={config.batch_size} is not a multiple of {chips} chips"
    )


@functools.cache
def devices_of(name, topology):
  """The devices of a topology description.

  Raises:
    UserError: the compiler is not installed.
  """
  jax.config.update("jax_platforms", "cpu")
  describe = topologies.get_topology_desc
  if name != "h100":
    os.environ.update(ENVIRONMENT)
    dump_schedules()
    try:
      name = f"{name}:{topology}"
      return describe(platform="tpu", topology_name=name).devices
    except Exception as e:
      if importlib.util.find_spec("libtpu"):
        raise
      raise UserError(
        f"--compile_for={name} needs the TPU's compiler:"
        ' pip install "jax[tpu]"'
      ) from e
  flags = os.environ.get("XLA_FLAGS", "")
  # Triton would look for its fastest tiles on a device.
  os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false"
  try:
    importlib.import_module("jax_plugins.xla_cuda13")
  except ImportError as e:
    raise UserError(
      '--compile_for=h100 needs the GPU\'s compiler: pip install "jax[cuda13]"'
    ) from e
  jax.devices()  # JAX finds the compiler when it looks for devices
  config = (Path(__file__).parent / "h100.txtpb").read_text()
  return describe(
    platform="cuda",
    topology_name=topology,
    topology=topology,
    target_config=config,
  ).devices


def compiler_of(name):
  """The package that compiles for a chip, and its version."""
  package = "jax-cuda13-plugin" if name == "h100" else "libtpu"
  return f"{package} {importlib.metadata.version(package)}"


@functools.cache
def dump_schedules():
  """Has the TPU's compiler write kernels' instructions to a folder of ours."""
  folder = tempfile.TemporaryDirectory()
  os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    [
      os.environ.get("LIBTPU_INIT_ARGS", ""),
      f"--xla_jf_dump_to={folder.name}",
      "--xla_jf_dump_llo_text=true",
      "--xla_jf_dump_llo_pass_label_regex=final_bundles",
    ]
  )
  return folder


def compile_step(target, config, chips, parallel="data"):
  """Compiles a stage's step.

  Args:
    target: of `parse_target`.
    config: of either stage, with mean and std; "auto" is bfloat16.
    chips: how many.
    parallel: "data", or "fsdp" over all chips.

  Returns:
    The figures, a dict that JSON can hold; see the command's help.
  """
  name, topology = target[0], topology_of(target, chips)
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "bfloat16"
  shape = (1, chips) if parallel == "fsdp" else (chips, 1)
  devices = np.array(devices_of(name, topology)[:chips]).reshape(shape)
  mesh = jax.sharding.Mesh(
    devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
  )
  init, step = steps.stage(config, mesh)
  figures = {
    "target": f"{name}:{topology}",
    "chips": chips,
    "parallel": parallel,
    "arch": config.model.name,
    "stage": config.stage,
    "dataset": config.dataset,
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "date": datetime.date.today().isoformat(),
    "jax": jax.__version__,
    "compiler": compiler_of(name),
  }
  with jax.set_mesh(mesh):
    state = jax.eval_shape(init)
    shardings = meshes.state_sharding(mesh, state)
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state,
      shardings,
    )
    batch = steps.batch_shapes(config, meshes.batch_sharding(mesh))
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    traced = step.trace(state, batch)
    lowered = traced.lower()
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    used = re.search(r"(?:Used |\()([\d.]+)([KMG])(?: of|\) exceeds)", str(e))
    if "RESOURCE_EXHAUSTED" not in str(e) or not used:
      raise
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}[used[2]]
    memory = int(float(used[1]) * factor)
    return figures | {"fits": False, "memory_bytes": memory}
  figures["compile_seconds"] = time.perf_counter() - began
  memory = steps.memory_bytes(compiled)
  figures |= {"fits": memory <= CHIPS[name].memory, "memory_bytes": memory}
  text = compiled.as_text()
  if name == "h100":
    return figures | program.gpu_figures(text, config.batch_size)
  flops = program.flops(traced.jaxpr.jaxpr) / chips
  schedules = Path(dump_schedules().name)
  return figures | program.tpu_figures(
    text, schedules, CHIPS[name], flops, config.batch_size
  )


def table(rows):
  """The figures as a table."""
  header = (
    "estimate", "chips", "batch", "fits", "GB", "ms", "images/s", "% of peak",
    "MB over links", "compile s", "costliest parts, ms",
  )  # fmt: skip

  def line(row):
    parts = sorted(row.get("parts_ms", {}).items(), key=lambda x: -x[1])[:4]
    what = f"{row['target']} {row['arch']} {row['stage']} {row['parallel']}"
    speed, share = row.get("images_per_second"), row.get("share_of_peak")
    links = row.get("link_bytes")
    return (
      what,
      row["chips"],
      row["batch_size"],
      "yes" if row["fits"] else "no",
      row["memory_bytes"] / 1e9,
      row.get("estimated_ms"),
      speed and round(speed),
      share and 100 * share,
      links and links / 1e6,
      row.get("compile_seconds"),
      ", ".join(f"{name} {ms:.1f}" for name, ms in parts),
    )

  return tables.table(header, map(line, rows))
