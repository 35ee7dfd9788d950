"""Stage 2: supervised fine-tuning, from a teacher's weights or from scratch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from vit_ssl_jax import evaluate, models
from vit_ssl_jax.augment import mix, pipelines
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.run import metrics
from vit_ssl_jax.train import gradients, loop, losses, optimizers, schedules


@flax.struct.dataclass
class FinetuneState:
  """The state of training."""

  step: jax.Array  # () int32, steps done
  params: dict  # the classifier's, float32
  offset_head: dict  # parameters of the drloc head, or {}
  opt_state: optax.OptState  # of both


@dataclasses.dataclass(frozen=True)
class Setup:
  """Static components of the training step."""

  config: ml_collections.ConfigDict
  model: Any  # the classifier
  learning_rate: Callable  # a function of the step
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh | None = None  # None is one device


def make_setup(config, num_classes, steps_per_epoch, mesh=None):
  """The `Setup` of a config."""
  o = config.optim
  learning_rate = schedules.finetune_learning_rate(
    o.learning_rate,
    o.min_learning_rate,
    config.epochs * steps_per_epoch,
    o.warmup_epochs * steps_per_epoch,
  )
  optimizer = optimizers.finetune(learning_rate, o.weight_decay, o.name)
  model = models.from_config(config, num_classes)
  return Setup(config, model, learning_rate, optimizer, mesh)


def init_state(setup, key):
  """The state of step 0, from scratch."""
  params = models.init(setup.model, key)
  offset_head = {}
  if setup.config.drloc.enabled:
    pair = jnp.zeros((1, 2 * setup.model.num_features))
    head_key = jax.random.fold_in(key, 1)
    offset_head = models.OffsetHead().init(head_key, pair)["params"]
  return state_of(params, offset_head, setup.optimizer)


def state_of(params, offset_head, optimizer):
  opt_state = optimizer.init((params, offset_head))
  return FinetuneState(jnp.int32(0), params, offset_head, opt_state)


def update(setup, state, images, targets, key):
  """The step after augmentation and mixing.

  Args:
    setup: a `Setup`.
    state: a `FinetuneState`.
    images: (B, H, W, 3), normalised.
    targets: (B, C), each row of which sums to 1.
    key: PRNG key of drop path and of drloc's pairs of tokens.
  """
  config = setup.config
  gather = meshes.all_gather_params(setup.mesh)

  def loss_fn(trained, batch):
    params, offset_head = gather(trained)
    images, targets, keep, pair_keys = batch
    apply = functools.partial(
      setup.model.apply, {"params": params}, images, keep=keep
    )
    if offset_head:
      logits, grid = apply(method="logits_and_grid")
    else:
      logits = apply()
    loss = losses.classification(logits, targets, config.label_smoothing)
    if not offset_head:
      return loss, {}
    drloc = losses.dense_relative_localization(
      lambda pairs: models.OffsetHead().apply({"params": offset_head}, pairs),
      grid,
      pair_keys,
      config.drloc.pairs,
    )
    return loss + config.drloc.weight * drloc, {"drloc": drloc}

  keep = models.drop_path(setup.model, key, images.shape[:1])
  pair_keys = jax.random.split(jax.random.fold_in(key, 1), len(images))
  trained = (state.params, state.offset_head)
  (loss, terms), grads = gradients.averaged(loss_fn, config.accumulate_steps)(
    trained, (images, targets, keep, pair_keys)
  )
  with jax.named_scope("update"):
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, trained)
    params, offset_head = optax.apply_updates(trained, updates)
  new_state = FinetuneState(state.step + 1, params, offset_head, opt_state)
  values = {"loss": loss, **terms}
  return gradients.finish(config, state, new_state, grads, values)


def make_step(setup):
  """Builds the step of {"image": (B, H, W, 3) uint8, "label": (B,)}.

  It is pure: (state, batch) -> (state, metrics); its randomness comes from
  config.seed and state.step alone.
  """
  config = setup.config
  root = loop.step_key(config)

  def step(state, batch):
    view_key, mix_key, drop_key = jax.random.split(
      jax.random.fold_in(root, state.step), 3
    )
    with jax.named_scope("augmentation"):
      images = pipelines.supervised(
        view_key, batch["image"], config.augment, config.mean, config.std
      )
      targets = jax.nn.one_hot(batch["label"], setup.model.num_classes)
      images, targets = mix.random_mix(mix_key, images, targets, **config.mix)
    rate = setup.learning_rate(state.step)
    state, values = update(setup, state, images, targets, drop_key)
    return state, values | {"learning_rate": rate}

  return step


def make_evaluate(setup, dataset):
  """Builds (state, due) -> top-1 in percent on test and validation images."""
  config = setup.config
  predict = jax.jit(evaluate.make_predict(setup.model, config.mean, config.std))

  def evaluate_state(state, due):
    del due  # it is cheap enough for every stop
    return {
      f"{prefix}top1": evaluate.top1(
        lambda images: predict(state.params, images),
        images,
        labels,
        config.evaluate_batch_size,
        meshes.batch_sharding(setup.mesh),
      )
      for prefix, images, labels in evaluate.parts(dataset)
    }

  return evaluate_state


def make_stage(config, dataset, steps_per_epoch, mesh, initial=None):
  """The stage as the loop runs it, from `initial.Weights` or from scratch."""
  setup = make_setup(config, len(dataset.classes), steps_per_epoch, mesh)
  weights = initial.params_for(dataset.classes) if initial else {}
  fresh = jax.jit(functools.partial(init_state, setup, loop.init_key(config)))

  def init():
    state = fresh()
    return state.replace(params=state.params | weights)

  return loop.Stage(
    init=init,
    step=make_step(setup),
    evaluate=make_evaluate(setup, dataset),
    summarize=summarize,
    parameters=models.count(setup.model),
    trained=lambda state: (state.params, state.offset_head),
  )


def summarize(lines):
  """The final figures: the last top-1, and the best of all by test or val."""
  top1 = [line["top1"] for line in lines if "top1" in line]
  last = {"top1": top1[-1], "best_top1_on_test": max(top1)} if top1 else {}
  return last | metrics.best_on_val(lines, "top1")
