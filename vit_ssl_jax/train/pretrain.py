"""Stage 1: self-supervised view prediction on the small set itself.

A student predicts, from one view of an image, the output of an EMA teacher for
another view (the paper, section 3.1; DINO, Caron et al., 2021).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_ssl_jax import models
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import alarms, gradients, losses, schedules, teacher


@flax.struct.dataclass
class PretrainState:
  """The state of training."""

  step: jax.Array  # () int32, steps done
  student: dict  # {"backbone": …, "head": …}, float32
  teacher: dict  # the student's exponential moving average
  opt_state: optax.OptState
  center: jax.Array  # (K,) float32, running mean of the teacher's outputs


def make_setup(config, steps_per_epoch, mesh=None):
  """The `teacher.Setup` of a config."""
  model = models.from_config(config, num_classes=0)
  head = models.ProjectionHead(**config.head, dtype=model.dtype)
  t = config.teacher
  temperature = schedules.teacher_temperature(
    t.warmup_temperature, t.temperature, t.temperature_warmup_epochs
  )
  values = teacher.make_schedules(config, steps_per_epoch)
  values["temperature"] = lambda step: temperature(step // steps_per_epoch)
  frozen_steps = config.optim.freeze_last_layer_epochs * steps_per_epoch
  optimizer = teacher.make_optimizer(config, values, frozen_steps)
  return teacher.Setup(config, model, head, values, optimizer, mesh)


def init_state(setup, key):
  """The state of step 0, with a centre at zero."""
  features = jnp.zeros((1, setup.model.num_features))
  center = jnp.zeros(setup.config.head.out_dim)
  return teacher.init_state(
    setup, key, (features,), PretrainState, center=center
  )


def project(setup, params, views):
  """Projects views of all sizes, of `with_drop_path`: (B, V, K) float32."""
  features = []
  for images, keep in views:
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (images, keep))
    outputs = setup.model.apply(
      {"params": params["backbone"]}, flat[0], keep=flat[1], method="features"
    )
    features.append(outputs.reshape(*images.shape[:2], -1))
  return setup.head.apply(
    {"params": params["head"]}, jnp.concatenate(features, axis=1)
  )


def with_drop_path(model, groups, key):
  """Pairs views (B, V, S, S, 3) with keep-factors (B, V, depth, 2) or None."""
  views = []
  for i, images in enumerate(groups):
    keep = None
    if key is not None:
      keep = models.drop_path(
        model, jax.random.fold_in(key, i), images.shape[:2]
      )
    views.append((images, keep))
  return views


def teacher_targets(config, logits, center, temperature):
  """The teacher's target distributions, (B, 2, K)."""
  if config.centering == "sinkhorn":
    return losses.sinkhorn_targets(logits, temperature)
  return losses.centered_targets(logits, center, temperature)


def update(setup, state, global_views, local_views, key):
  """The step after augmentation (Caron et al., 2021, algorithm 1).

  Args:
    setup: a `teacher.Setup`.
    state: a `PretrainState`.
    global_views: (B, 2, S, S, 3), normalised.
    local_views: (B, V, s, s, 3), normalised; V may be 0.
    key: PRNG key of drop path.
  """
  config, t = setup.config, setup.config.teacher
  scheduled = setup.scheduled(state.step)
  student_key, teacher_key = jax.random.split(key)
  gather = meshes.all_gather_params(setup.mesh)
  outputs = functools.partial(project, setup)

  # The teacher sees global views alone.
  views = with_drop_path(
    setup.model, [global_views], teacher_key if t.drop_path else None
  )
  teacher_logits = gradients.concatenated(outputs, config.accumulate_steps)(
    gather(state.teacher), views
  )
  targets = teacher_targets(
    t, teacher_logits, state.center, scheduled["temperature"]
  )

  def loss_fn(student, batch):
    views, targets = batch
    logits = outputs(gather(student), views)
    return losses.dino(logits, targets, config.student_temperature), {}

  sizes = [x for x in (global_views, local_views) if x.shape[1]]
  views = with_drop_path(setup.model, sizes, student_key)
  (loss, _), grads = gradients.averaged(loss_fn, config.accumulate_steps)(
    state.student, (views, targets)
  )
  center = losses.update_center(state.center, teacher_logits, t.center_momentum)
  entropy, divergence = losses.entropy_and_divergence(targets)
  values = {
    "loss": loss,
    "teacher_entropy": entropy,
    "teacher_kl": divergence,
    **scheduled,
  }
  return teacher.advance(setup, state, grads, values, center=center)


def make_stage(config, dataset, steps_per_epoch, mesh):
  """The stage as the loop runs it."""
  setup = make_setup(config, steps_per_epoch, mesh)
  warn = functools.partial(alarms.collapse_warning, config, steps_per_epoch)
  return teacher.make_stage(setup, dataset, init_state, update, warn)
