"""Times a step on the devices of this machine."""

import contextlib
import statistics
import time

import jax

from vit_ssl_jax.benchmark import steps
from vit_ssl_jax.train import trial

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
  compiled, state, batch, compile_seconds = trial.compiled(
    config, steps.STAGES[config.stage].make_stage, steps.CLASSES
  )

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
