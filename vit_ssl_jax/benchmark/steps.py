"""Steps of training by its recipes, to compile or to time."""

import contextlib
import statistics
import time

import jax

from vit_ssl_jax import models, recipes
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import custom, schema
from vit_ssl_jax.train import finetune, pretrain, timing

CLASSES = 10
WARM_UP = 2  # steps before any is timed
STAGES = {"pretrain": pretrain, "finetune": finetune}


def make_config(stage, arch, args, settings):
  """A stage's recipe for --dataset, with some of its values changed.

  Args:
    stage, arch: which.
    args: with dataset and batch_size.
    settings: of `schema.change`.

  Raises:
    UserError: there is no such recipe, key or value.
  """
  config = recipes.get(stage, f"{arch},{args.dataset}")
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  schema.change(config, settings)
  if custom.is_unset(config):
    raise UserError(
      f"--dataset={args.dataset} has no recipe without its images: possible are"
      f" {', '.join(registry.SETS)}"
    )
  schema.check(config)
  return config


def describe(config):
  """What a step is, as a dict that JSON can hold."""
  return {
    "arch": config.model.name,
    "stage": config.stage,
    "dataset": config.dataset,
    "batch_size": config.batch_size,
    "dtype": str(models.compute_dtype(config)),
    "jax": jax.__version__,
  }


def memory_bytes(step):
  """What a compiled step takes on one device."""
  memory = step.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


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
  make_stage = STAGES[config.stage].make_stage
  step, state, batch, compile_seconds = timing.compiled(
    config, make_stage, CLASSES
  )

  def run(count):
    """Runs steps, and returns the seconds of one of them."""
    nonlocal state
    began = time.perf_counter()
    for _ in range(count):
      state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / count

  run(WARM_UP)
  with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
    taken = [run(count) for _ in range(rounds)]
  seconds = statistics.median(taken)
  return {
    **describe(config),
    "images_per_second": config.batch_size / seconds,
    "step_seconds": seconds,
    "rounds": taken,
    "compile_seconds": compile_seconds,
    "memory_bytes": memory_bytes(step),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
  }
