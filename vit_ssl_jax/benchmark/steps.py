"""The steps that are measured or compiled: those of training by its recipes."""

import types

import jax
import numpy as np

from vit_ssl_jax import models, recipes
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import finetune, pretrain

SETTING = "--config."
STEPS_PER_EPOCH = 100  # of the schedules; the step takes as long with any
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


def stage(config, mesh=None):
  """A stage's () -> state, and its step (state, batch) -> (state, metrics).

  Args:
    config: of either stage, with mean and std.
    mesh: over which the state is sharded; None is one device.
  """
  dataset = types.SimpleNamespace(classes=range(CLASSES))  # not evaluated
  module = STAGES[config.stage]
  made = module.make_stage(config, dataset, STEPS_PER_EPOCH, mesh)
  return made.init, made.step


def trace(config, mesh):
  """A step on a mesh as JAX traces it, and what it is given.

  Returns:
    The traced step, which donates the state; state and batch, functions that
    make them; and their shardings.
  """
  init, step = stage(config, mesh)
  state = jax.eval_shape(init)
  shardings = meshes.state_sharding(mesh, state), meshes.batch_sharding(mesh)
  batch = random_batch(config)
  step = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=shardings,
    out_shardings=(shardings[0], None),
  )
  with jax.set_mesh(mesh):
    return step.trace(state, batch), (init, batch), shardings


def random_batch(config):
  """Images (B, S, S, 3) uint8 and labels (B,) int32."""
  rng = np.random.default_rng(0)
  count, side = config.batch_size, config.model.image_size
  return {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "label": rng.integers(0, CLASSES, count, np.int32),
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
