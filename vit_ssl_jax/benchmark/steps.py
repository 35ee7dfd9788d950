"""The steps that are measured or compiled: those of training by its recipes."""

import jax

from vit_ssl_jax import models, recipes
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.train import finetune, pretrain

SETTING = "--config."
CLASSES = 10
STAGES = {"pretrain": pretrain, "finetune": finetune}


def make_config(stage, arch, args, settings):
  """A stage's recipe for --dataset, with some of its values changed.

  Raises:
    UserError: there is no such recipe, key or value.
  """
  try:
    config = recipes.get(stage, f"{arch},{args.dataset}").lock()
  except ValueError as e:
    raise UserError(str(e)) from e
  config.update(dtype=args.dtype, mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  for key, value in settings.items():
    try:
      config.update_from_flattened_dict({key: value})
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise UserError(f"{SETTING}{key}={value}: {e}") from e
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
