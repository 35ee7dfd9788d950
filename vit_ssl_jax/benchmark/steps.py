"""Steps of training by its recipes, to compile or to time."""

import contextlib
import statistics
import time

import jax

from vit_ssl_jax import models, recipes
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import own
from vit_ssl_jax.run import schema
from vit_ssl_jax.train import finetune, pretrain, trial

CLASSES = 10
WARM_UP = 2  # steps before any is timed
STAGES = {"pretrain": pretrain, "finetune": finetune}


def make_config(stage, arch, args, settings):
  """A stage's recipe for --dataset, with some of its values changed.

  Args:
    stage, arch: which.
    args: with dataset and batch_size.
    settings: a dict of values by their keys.

  Raises:
    UserError: there is no such recipe, key or value.
  """
  try:
    config = recipes.get(stage, f"{arch},{args.dataset}").lock()
  except ValueError as e:
    raise UserError(str(e)) from e
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  for key, value in settings.items():
    try:
      config.update_from_flattened_dict({key: value})
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise UserError(f"--config.{key}={value}: {e}") from e
  if own.is_open(config):
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


def memory_bytes(compiled):
  """What a compiled step takes on one device."""
  memory = compiled.memory_analysis()
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
  compiled, state, batch, compile_seconds = trial.compiled(
    config, STAGES[config.stage].make_stage, CLASSES
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
    **describe(config),
    "images_per_second": config.batch_size / seconds,
    "step_seconds": seconds,
    "rounds": taken,
    "compile_seconds": compile_seconds,
    "memory_bytes": memory_bytes(compiled),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
  }
