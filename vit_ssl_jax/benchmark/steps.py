"""Training steps of the recipes, timed on random images."""

import contextlib
import statistics
import time

import jax

from vit_ssl_jax import models, recipes, train
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.train import timing

CLASSES = 10
WARM_UP = 2  # steps


def make_config(stage, arch, dataset, batch_size, settings, on_cpu=False):
  """A recipe, with settings of `schema.change`; batch_size may be None."""
  config = recipes.get(stage, f"{arch},{dataset}")
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = batch_size or config.batch_size
  schema.change(config, settings)
  schema.set_remat(config, on_cpu)
  if schema.is_unset(config):
    raise UserError(
      f"--dataset={dataset} has no recipe without its images: possible are"
      f" {', '.join(registry.SETS)}"
    )
  schema.check(config)
  return config


def describe(config):
  """The settings of a step, a dict for JSON."""
  return {
    "arch": config.model.name,
    "stage": config.stage,
    "dataset": config.dataset,
    "batch_size": config.batch_size,
    "dtype": str(models.compute_dtype(config)),
    "jax": jax.__version__,
  }


def memory_bytes(step):
  """Memory of a compiled step on one device."""
  memory = step.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def measure(config, steps, rounds, trace=None):
  """Compiles a step and times rounds of steps; the figures, a dict for JSON."""
  make_stage = train.stage_of(config).make_stage
  step, state, batch, compile_seconds = timing.compiled(
    config, make_stage, CLASSES
  )

  def step_seconds(count):
    nonlocal state
    began = time.perf_counter()
    for _ in range(count):
      state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / count

  step_seconds(WARM_UP)
  with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
    timings = [step_seconds(steps) for _ in range(rounds)]
  seconds = statistics.median(timings)
  return {
    **describe(config),
    "images_per_second": config.batch_size / seconds,
    "step_seconds": seconds,
    "rounds": timings,
    "compile_seconds": compile_seconds,
    "memory_bytes": memory_bytes(step),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
  }
