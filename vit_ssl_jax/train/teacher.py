"""A student and its EMA teacher, shared by both objectives of pretraining."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from vit_ssl_jax import evaluate, models
from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.run import metrics
from vit_ssl_jax.train import gradients, loop, optimizers, schedules


@dataclasses.dataclass(frozen=True)
class Setup:
  """Static components of the training step."""

  config: ml_collections.ConfigDict
  model: Any  # the backbone of student and teacher
  head: Any  # their `models.ProjectionHead` or `mae.PixelDecoder`
  schedules: dict[str, Callable]  # functions of the step
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh | None = None  # None is one device

  def scheduled(self, step):
    """The schedules' values at a step, a dict of float32 scalars."""
    return {
      name: jnp.asarray(schedule(step), jnp.float32)
      for name, schedule in self.schedules.items()
    }


def make_schedules(config, steps_per_epoch):
  """Learning rate, weight decay and teacher momentum, by the step.

  The config's learning rate is for a batch of 256 and is scaled with the batch
  (Goyal et al., 2017).
  """
  o = config.optim
  steps = config.epochs * steps_per_epoch
  peak = o.learning_rate * config.batch_size / 256
  return {
    "learning_rate": schedules.pretrain_learning_rate(
      peak, o.min_learning_rate, steps, o.warmup_epochs * steps_per_epoch
    ),
    "weight_decay": schedules.cosine(o.weight_decay, o.weight_decay_end, steps),
    "momentum": schedules.cosine(config.teacher.momentum, 1.0, steps),
  }


def make_optimizer(config, values, frozen_steps=0):
  """The optimizer of pretraining, of `make_schedules`' values."""
  return optimizers.pretrain(
    values["learning_rate"],
    values["weight_decay"],
    clip=config.optim.clip_per_tensor,
    frozen_steps=frozen_steps,
    name=config.optim.name,
  )


def init_state(setup, key, head_inputs, state_class, **fields):
  """The state of step 0: a student, and a teacher with the same weights."""
  backbone_key, head_key = jax.random.split(key)
  student = {
    "backbone": models.init(setup.model, backbone_key),
    "head": setup.head.init(head_key, *head_inputs)["params"],
  }
  return state_class(
    step=jnp.zeros((), jnp.int32),
    student=student,
    teacher=jax.tree.map(jnp.copy, student),
    opt_state=setup.optimizer.init(student),
    **fields,
  )


def advance(setup, state, grads, values, **fields):
  """Updates student and teacher; returns the new state and the metrics.

  `values` are the metrics so far, with "momentum"; `fields` are further fields
  of the new state.
  """
  with jax.named_scope("update"):
    updates, opt_state = setup.optimizer.update(
      grads, state.opt_state, state.student
    )
    student = optax.apply_updates(state.student, updates)
    teacher = optax.incremental_update(
      student, state.teacher, 1 - values["momentum"]
    )
  new_state = state.replace(
    step=state.step + 1,
    student=student,
    teacher=teacher,
    opt_state=opt_state,
    **fields,
  )
  return gradients.finish(setup.config, state, new_state, grads, values)


def make_stage(setup, dataset, init, update, warn=lambda *_: None):
  """The `loop.Stage` of an objective with its `init_state` and `update`."""
  key = loop.init_key(setup.config)
  first_state = jax.jit(functools.partial(init, setup, key))
  evaluate_state, baselines = make_evaluate(
    setup, dataset, lambda: first_state().teacher["backbone"]
  )
  return loop.Stage(
    init=first_state,
    step=make_step(setup, update),
    evaluate=evaluate_state,
    baselines=baselines,
    summarize=summarize,
    parameters=models.count(setup.model),
    trained=lambda state: state.student,
    warn=warn,
  )


def make_step(setup, update):
  """Builds the step of {"image": (B, H, W, 3) uint8}.

  It is pure: (state, batch) -> (state, metrics); its randomness comes from
  config.seed and state.step alone.
  """
  config = setup.config
  root = loop.step_key(config)

  def step(state, batch):
    view_key, key = jax.random.split(jax.random.fold_in(root, state.step))
    with jax.named_scope("augmentation"):
      views = pipelines.multi_crop(
        view_key, batch["image"], config.views, config.mean, config.std
      )
    return update(setup, state, *views, key)

  return step


def make_evaluate(setup, dataset, fresh):
  """Builds the k-NN evaluation of the teacher, and that of the baselines.

  The baselines are raw pixels and the untrained network, of `fresh()`.
  """
  config = setup.config

  @jax.jit
  def features(params, images):
    images = pipelines.evaluation_view(images, config.mean, config.std)
    return setup.model.apply({"params": params}, images, method="features")

  def knn(extract):
    sets = evaluate.parts(dataset)
    train = extract(dataset.train_images) if sets else None
    classes = len(dataset.classes)
    return {
      f"{prefix}knn": evaluate.knn_accuracy(
        train, dataset.train_labels, extract(images), labels, classes
      )
      for prefix, images, labels in sets
    }

  def network_knn(params):
    return knn(
      lambda images: evaluate.extract(
        lambda x: features(params, x),
        images,
        config.evaluate_batch_size,
        meshes.batch_sharding(setup.mesh),
      )
    )

  def evaluate_state(state, due):
    return network_knn(state.teacher["backbone"]) if due else {}

  def baselines():
    figures = {
      "raw_pixels": knn(lambda images: evaluate.pixels(images, config.mean)),
      "untrained": network_knn(fresh()),
    }
    return {
      f"{name}_{source}": value
      for source, values in figures.items()
      for name, value in values.items()
    }

  return evaluate_state, baselines


def summarize(lines):
  """The last k-NN accuracy, where there is one."""
  knn = [line["knn"] for line in lines if "knn" in line]
  last = {"knn": knn[-1]} if knn else {}
  return last | metrics.best_on_val(lines, "knn")
