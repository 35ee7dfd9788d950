"""The steps that are measured or compiled: those of training by its recipes."""

import functools
import importlib
import types

import jax
import numpy as np

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.train import finetune, pretrain

SETTING = "--config."
STEPS_PER_EPOCH = 100  # of the schedules; the step takes as long with any
CLASSES = 10
STAGES = ("pretrain", "finetune")


def make_config(stage, arch, args, settings):
  """A stage's recipe for --dataset, with some of its values changed.

  Raises:
    UserError: there is no such recipe, key or value.
  """
  try:
    recipe = importlib.import_module(f"configs.{stage}")
  except ModuleNotFoundError as e:
    raise UserError(
      "there is no package configs here: run the benchmark in a clone of the"
      " project"
    ) from e
  try:
    config = recipe.get_config(f"{arch},{args.dataset}")
  except ValueError as e:
    raise UserError(str(e)) from e
  config.update(dtype=args.dtype, mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  for key, value in settings.items():
    *parts, last = key.split(".")
    try:
      part = functools.reduce(getattr, parts, config)
      getattr(part, last)  # or an error; a new key would be added in silence
      setattr(part, last, value)
    except (AttributeError, TypeError) as e:
      raise UserError(f"{SETTING}{key}={value}: {e}") from e
  return config


def stage(config, mesh=None):
  """A stage's () -> state, and its step (state, batch) -> (state, metrics).

  Args:
    config: of either stage, with mean and std.
    mesh: over which the state is sharded; None is one device.
  """
  module = {"pretrain": pretrain, "finetune": finetune}[config.stage]
  dataset = types.SimpleNamespace(classes=range(CLASSES))  # not evaluated
  made = module.make_stage(config, dataset, STEPS_PER_EPOCH, mesh)
  return made.init, made.step


def memory_bytes(compiled):
  """What a compiled step takes on one device."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def batch_shapes(config, sharding=None):
  """Images (B, S, S, 3) uint8 and labels (B,) int32, as shapes."""
  count, side = config.batch_size, config.model.image_size
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  return {
    "image": shape((count, side, side, 3), np.uint8),
    "label": shape((count,), np.int32),
  }


def random_batch(config):
  """Random images and labels of `batch_shapes`."""
  rng = np.random.default_rng(0)
  highest = {"image": 256, "label": CLASSES}
  return {
    name: rng.integers(0, highest[name], x.shape, x.dtype)
    for name, x in batch_shapes(config).items()
  }
