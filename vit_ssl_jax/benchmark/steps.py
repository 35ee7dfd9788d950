"""The steps that are measured: training's own, and the same without input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.augment import multi_crop as views
from vit_ssl_jax.train import finetune, loop, optimizers, pretrain

STEPS_PER_EPOCH = 100  # of the schedules, which cost nothing
CLASSES = 10


def stage(config, augmented, mesh=None):
  """A stage's () -> state, and its step (state, batch) -> (state, metrics).

  Args:
    config: of either stage, with mean and std.
    augmented: whether the step has its augmentation.
    mesh: over which the state is sharded; None is one device.
  """
  if config.stage == "pretrain":
    return pretraining(config, augmented, mesh)
  return finetuning(config, augmented, mesh)


def pretraining(config, augmented, mesh):
  """As `stage`; without augmentation views are the images' upper left."""
  model = models.from_config(config, num_classes=0)
  head = models.ProjectionHead(**config.head, dtype=model.dtype)
  schedules = pretrain.make_schedules(config, STEPS_PER_EPOCH)
  optimizer = pretrain.make_optimizer(config, schedules, STEPS_PER_EPOCH)
  parts = (config, model, head, optimizer, schedules, mesh)
  init = functools.partial(
    pretrain.init_state, model, head, optimizer, loop.init_key(config)
  )
  if augmented:
    return init, pretrain.make_train_step(*parts)
  update = pretrain.make_update(*parts)

  def step(state, batch):
    images = views.evaluation_view(batch["image"], config.mean, config.std)

    def copies(count, size):
      return jnp.repeat(images[None, :, :size, :size], count, 0)

    v = config.views
    key = jax.random.fold_in(loop.step_key(config), state.step)
    return update(
      state,
      copies(2, v.global_size),
      copies(v.local_views, v.local_size),
      key,
    )

  return init, step


def finetuning(config, augmented, mesh):
  """As `stage`; without augmentation targets are the labels."""
  model = models.from_config(config, num_classes=CLASSES)
  rates = finetune.make_schedule(config, STEPS_PER_EPOCH)
  optimizer = optimizers.finetune(rates, config.optim.weight_decay)
  init = functools.partial(
    finetune.init_state,
    model,
    optimizer,
    loop.init_key(config),
    config.drloc.enabled,
  )
  if augmented:
    step = finetune.make_train_step(config, model, optimizer, rates, mesh)
    return init, step
  update = finetune.make_update(config, model, optimizer, mesh)

  def step(state, batch):
    images = views.evaluation_view(batch["image"], config.mean, config.std)
    key = jax.random.fold_in(loop.step_key(config), state.step)
    targets = jax.nn.one_hot(batch["label"], CLASSES)
    return update(state, images, targets, key)

  return init, step


def batch_shapes(config, sharding=None):
  """The shapes of a batch, as a step takes it."""
  side, count = config.model.image_size, config.batch_size
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  return {
    "image": shape((count, side, side, 3), np.uint8),
    "label": shape((count,), np.int32),
  }
