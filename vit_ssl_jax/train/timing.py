"""Compiles and times a training step on random images."""

import time
import types

import jax
import numpy as np

from vit_ssl_jax.parallel import hosts, mesh as meshes
from vit_ssl_jax.train import dispatch

STEPS_PER_EPOCH = 100  # of the schedules; the step takes as long with any


def stage(config, make_stage, classes, mesh=None):
  """Builds a stage's initial state, a function, and its step.

  Args:
    config: of any stage, with mean and std.
    make_stage: as for `loop.run`.
    classes: number of classes.
    mesh: over which the state is sharded; None is one device.
  """
  dataset = types.SimpleNamespace(classes=range(classes))  # not evaluated
  made = make_stage(config, dataset, STEPS_PER_EPOCH, mesh)
  return made.init, made.step


def trace(config, make_stage, classes, mesh):
  """Traces a step on a mesh.

  Returns:
    The traced step, which donates the state; () -> state, and a batch; and the
    shardings of both.
  """
  init, step = stage(config, make_stage, classes, mesh)
  state = jax.eval_shape(init)
  shardings = meshes.state_sharding(mesh, state), meshes.batch_sharding(mesh)
  batch = random_batch(config, classes)
  step = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=shardings,
    out_shardings=(shardings[0], None),
    compiler_options=meshes.compiler_options(mesh.devices.flat[0].platform),
  )
  with jax.set_mesh(mesh):
    return step.trace(state, batch), (init, batch), shardings


def random_batch(config, classes):
  """Images (B, S, S, 3) uint8 and labels (B,) int32."""
  rng = np.random.default_rng(0)
  count, side = config.batch_size, config.model.image_size
  return {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "label": rng.integers(0, classes, count, np.int32),
  }


def compiled(config, make_stage, classes):
  """Compiles a step for the devices present, with the kernels of a run.

  Returns:
    The compiled step (state, batch) -> (state, metrics), a state, a batch, and
    the seconds of compilation.
  """
  mesh = meshes.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  init, step = stage(config, make_stage, classes, mesh)
  with jax.set_mesh(mesh):
    dispatch.select_kernels(config, step, jax.eval_shape(init))
  traced, (init, batch), shardings = trace(config, make_stage, classes, mesh)
  state = meshes.device_put_global(init(), shardings[0])
  batch = jax.device_put(batch, shardings[1])
  began = time.perf_counter()
  with jax.set_mesh(mesh):
    step = traced.lower().compile()
  return step, state, batch, time.perf_counter() - began


def rate(config, make_stage, classes, seconds):
  """Times a compiled step for some seconds; images per second."""
  step, state, batch, _ = compiled(config, make_stage, classes)
  state, _ = jax.block_until_ready(step(state, batch))
  began, steps = time.perf_counter(), 0
  # All processes make the same number.
  while hosts.broadcast(time.perf_counter() - began < seconds):
    state, _ = jax.block_until_ready(step(state, batch))
    steps += 1
  return config.batch_size * steps / (time.perf_counter() - began)
