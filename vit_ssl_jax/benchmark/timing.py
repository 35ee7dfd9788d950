"""Times a step on the devices of this machine."""

import contextlib
import statistics
import time

import jax

from vit_ssl_jax.benchmark import steps
from vit_ssl_jax.parallel import mesh as meshes

WARM_UP = 2  # steps


def measure(config, count, rounds, trace=None):
  """Compiles and times a step.

  Args:
    config: of either stage, with mean and std.
    count: how many steps are timed together, of which the last is waited for.
    rounds: how often.
    trace: a folder for a trace of the rounds, or None.

  Returns:
    The figures, a dict that JSON can hold.

  Raises:
    UserError: the devices do not divide the batch.
  """
  mesh = meshes.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  traced, (init, batch), shardings = steps.trace(config, mesh)
  state = meshes.place(init(), shardings[0])
  batch = jax.device_put(batch, shardings[1])
  began = time.perf_counter()
  with jax.set_mesh(mesh):
    compiled = traced.lower().compile()
  compile_seconds = time.perf_counter() - began

  def run(state, count):
    """Runs steps; the state and the seconds of one of them."""
    began = time.perf_counter()
    for _ in range(count):
      state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - began) / count

  state, _ = run(state, WARM_UP)
  taken = []
  with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
    for _ in range(rounds):
      state, seconds = run(state, count)
      taken.append(seconds)
  seconds = statistics.median(taken)
  return {
    **steps.describe(config),
    "images_per_second": config.batch_size / seconds,
    "step_seconds": seconds,
    "rounds": taken,
    "compile_seconds": compile_seconds,
    "memory_bytes": steps.memory_bytes(compiled),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
  }
