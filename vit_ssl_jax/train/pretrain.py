"""Stage 1: self-supervised view prediction on the small set itself.

A student predicts, from one view of an image, the output of an EMA teacher for
another view (the paper, section 3.1; DINO, Caron et al., 2021). With
config.objective = "mae" it predicts hidden patches from the others instead
(masked autoencoders, He et al., 2022), which is not in the paper.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from vit_ssl_jax import evaluate, models
from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.models import locality
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.run import metrics
from vit_ssl_jax.train import (
  alarms,
  gradients,
  loop,
  losses,
  optimizers,
  schedules,
)


@flax.struct.dataclass
class PretrainState:
  """All that a step changes.

  Attributes:
    step: () int32, steps done.
    student: {"backbone": ..., "head": ...}, float32.
    teacher: the same tree, the student's exponential moving average.
    opt_state: the optimizer's state.
    center: (K,) float32, running mean of the teacher's outputs.
  """

  step: jax.Array
  student: dict
  teacher: dict
  opt_state: optax.OptState
  center: jax.Array


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """What a step is made with; it holds no arrays of the state.

  Attributes:
    config: the run's config.
    model: the backbone of student and teacher.
    head: their `models.ProjectionHead`; where patches are predicted, a
      `models.PixelDecoder`.
    schedules: of `make_schedules`.
    optimizer: an optax transformation.
    mesh: over which the state is sharded; None is one device.
  """

  config: ml_collections.ConfigDict
  model: Any
  head: models.ProjectionHead | models.PixelDecoder
  schedules: dict
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh | None = None


def make(config, steps_per_epoch, mesh=None):
  """The `Pretraining` of a config.

  Raises:
    UserError: as of `models.build`.
  """
  model = models.from_config(config, num_classes=0)
  if config.objective == "mae":
    head = models.PixelDecoder(
      patches=(config.views.global_size // model.patch_size) ** 2,
      pixels=3 * model.patch_size**2,
      num_heads=model.num_heads,
      mlp_ratio=model.mlp_ratio,
      dtype=model.dtype,
    )
  else:
    head = models.ProjectionHead(**config.head, dtype=model.dtype)
  values = make_schedules(config, steps_per_epoch)
  optimizer = optimizers.pretrain(
    values["learning_rate"],
    values["weight_decay"],
    clip=config.optim.clip_per_tensor,
    frozen_steps=config.optim.freeze_last_layer_epochs * steps_per_epoch,
    name=config.optim.name,
  )
  return Pretraining(config, model, head, values, optimizer, mesh)


def make_schedules(config, steps_per_epoch):
  """Learning rate, weight decay, momentum and temperature, by the step.

  The learning rate in the config is for a batch of 256 and is scaled with the
  batch (Goyal et al., 2017).
  """
  o, t = config.optim, config.teacher
  steps = config.epochs * steps_per_epoch
  peak = o.learning_rate * config.batch_size / 256
  temperature = schedules.teacher_temperature(
    t.warmup_temperature,
    t.temperature,
    t.temperature_warmup_epochs,
  )
  return {
    "learning_rate": schedules.pretrain_learning_rate(
      peak, o.min_learning_rate, steps, o.warmup_epochs * steps_per_epoch
    ),
    "weight_decay": schedules.cosine(o.weight_decay, o.weight_decay_end, steps),
    "momentum": schedules.cosine(t.momentum, 1.0, steps),
    "temperature": lambda step: temperature(step // steps_per_epoch),
  }


def init_state(parts, key):
  """A student, a teacher with the same weights, a centre at zero."""
  backbone_key, head_key = jax.random.split(key)
  features = jnp.zeros((1, parts.model.num_features))
  given = (features,)
  if parts.config.objective == "mae":  # a class token, and no patches
    given = features[None], jnp.zeros((1, 0), jnp.int32)
  student = {
    "backbone": models.init(parts.model, backbone_key),
    "head": parts.head.init(head_key, *given)["params"],
  }
  return PretrainState(
    step=jnp.zeros((), jnp.int32),
    student=student,
    teacher=jax.tree.map(jnp.copy, student),
    opt_state=parts.optimizer.init(student),
    center=jnp.zeros(parts.config.head.out_dim),
  )


def project(model, head, params, views):
  """Outputs of the projection head for views of several sizes.

  Args:
    model, head: the flax modules.
    params: {"backbone", "head"}.
    views: of `with_drop_path`: for each size images (B, V, S, S, 3) and drop
      path's keep-factors (B, V, depth, 2), or None.

  Returns:
    (B, sum of V, K) float32.
  """
  features = []
  for images, keep in views:
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (images, keep))
    found = model.apply(
      {"params": params["backbone"]}, flat[0], keep=flat[1], method="features"
    )
    features.append(found.reshape(*images.shape[:2], -1))
  return head.apply(
    {"params": params["head"]}, jnp.concatenate(features, axis=1)
  )


def with_drop_path(model, groups, key):
  """Views with drop path's keep-factors; the batch is the first axis of all.

  Args:
    model: the backbone.
    groups: arrays (V, B, S, S, 3), one for each size.
    key: PRNG key, or None for no drop path.

  Returns:
    A list of (images (B, V, S, S, 3), factors (B, V, depth, 2) or None).
  """
  views = []
  for i, images in enumerate(groups):
    images, keep = images.swapaxes(0, 1), None
    if key is not None:
      group_key = jax.random.fold_in(key, i)
      keep = models.drop_path(model, group_key, images.shape[:2])
    views.append((images, keep))
  return views


def update(parts, state, global_views, local_views, key):
  """The part of a step that comes after augmentation, for views.

  Args:
    parts: the `Pretraining`.
    state: a `PretrainState`.
    global_views: (2, B, S, S, 3), normalised.
    local_views: (V, B, s, s, 3), normalised; V may be 0.
    key: PRNG key of drop path.

  Returns:
    The new state, and a dict of scalars.
  """
  config, t = parts.config, parts.config.teacher
  now = scheduled(parts, state.step)
  student_key, teacher_key = jax.random.split(key)
  gathered = meshes.all_gather_params(parts.mesh)
  outputs = functools.partial(project, parts.model, parts.head)

  # (B, 2, K): the teacher sees global views alone.
  teacher_logits = gradients.concatenated(outputs, config.accumulate_steps)(
    gathered(state.teacher),
    with_drop_path(
      parts.model, [global_views], teacher_key if t.drop_path else None
    ),
  )
  if t.centering == "sinkhorn":
    targets = losses.sinkhorn_targets(teacher_logits, now["temperature"])
  else:
    targets = losses.centered_targets(
      teacher_logits, state.center, now["temperature"]
    )

  def loss_fn(student, batch):
    views, targets = batch
    logits = outputs(gathered(student), views)
    return losses.dino(
      logits.swapaxes(0, 1), targets.swapaxes(0, 1), config.student_temperature
    ), {}

  groups = [global_views, local_views] if len(local_views) else [global_views]
  views = with_drop_path(parts.model, groups, student_key)
  (loss, _), grads = gradients.averaged(loss_fn, config.accumulate_steps)(
    state.student, (views, targets)
  )
  entropy, divergence = losses.entropy_and_divergence(targets)
  values = {
    "loss": loss,
    "teacher_entropy": entropy,
    "teacher_kl": divergence,
    **now,
  }
  center = losses.update_center(state.center, teacher_logits, t.center_momentum)
  return apply(parts, state, grads, values, center=center)


def update_of_patches(parts, state, views, key):
  """The part of a step that comes after augmentation, for hidden patches.

  (Masked autoencoders, He et al., 2022, section 3.) No drop path is active.

  Args:
    parts: the `Pretraining`.
    state: a `PretrainState`.
    views: (2, B, S, S, 3), normalised.
    key: PRNG key of which patches are hidden.

  Returns:
    The new state, and a dict of scalars.
  """
  views = views.swapaxes(0, 1)
  patches = parts.head.patches
  visible = models.random_masking(key, views.shape[:2], patches)  # (B, 2, k)
  gathered = meshes.all_gather_params(parts.mesh)

  def loss_fn(student, batch):
    student = gathered(student)
    images, visible = (x.reshape(-1, *x.shape[2:]) for x in batch)
    tokens = parts.model.apply(
      {"params": student["backbone"]}, images, visible, method="encode_visible"
    )
    predicted = parts.head.apply({"params": student["head"]}, tokens, visible)
    pixels = locality.cut(images, parts.model.patch_size)
    pixels = pixels.reshape(predicted.shape)
    return losses.reconstruction(predicted, pixels, visible), {}

  steps = parts.config.accumulate_steps
  (loss, _), grads = gradients.averaged(loss_fn, steps)(
    state.student, (views, visible)
  )
  values = {"loss": loss, **scheduled(parts, state.step)}
  return apply(parts, state, grads, values)


def scheduled(parts, step):
  """What the schedules say of a step, a dict of scalars."""
  return {
    name: jnp.asarray(schedule(step), jnp.float32)
    for name, schedule in parts.schedules.items()
  }


def apply(parts, state, grads, values, **changes):
  """The state after a step, and its metrics.

  Args:
    parts: the `Pretraining`.
    state: before the step.
    grads: of the student.
    values: the metrics until now, with "momentum".
    **changes: of the state, made by the step.
  """
  with jax.named_scope("update"):
    updates, opt_state = parts.optimizer.update(
      grads, state.opt_state, state.student
    )
    student = optax.apply_updates(state.student, updates)
  new_state = state.replace(
    step=state.step + 1,
    student=student,
    teacher=optax.incremental_update(
      student, state.teacher, 1 - values["momentum"]
    ),
    opt_state=opt_state,
    **changes,
  )
  norm, bad_tensor = gradients.norm(grads)
  values |= {"gradient_norm": norm, "bad_tensor": bad_tensor}
  return gradients.step_or_skip(parts.config, state, new_state, values), values


def make_step(parts):
  """Makes stage 1's step.

  Returns:
    A pure function (state, {"image": (B, H, W, 3) uint8}) -> (state, metrics);
    what is random in it comes from config.seed and state.step alone.
  """
  config = parts.config
  root = loop.step_key(config)

  def step(state, batch):
    view_key, drop_key = jax.random.split(jax.random.fold_in(root, state.step))
    with jax.named_scope("augmentation"):
      global_views, local_views = pipelines.multi_crop(
        view_key, batch["image"], config.views, config.mean, config.std
      )
    if config.objective == "mae":
      return update_of_patches(parts, state, global_views, drop_key)
    return update(parts, state, global_views, local_views, drop_key)

  return step


def make_evaluate(parts, dataset):
  """Makes what measures k-NN top-1 in percent.

  Returns:
    (state, due) -> that of the teacher's features, where due; and () -> that of
    raw pixels and of the untrained network.
  """
  config, mesh = parts.config, parts.mesh

  @jax.jit
  def features(params, images):
    images = pipelines.evaluation_view(images, config.mean, config.std)
    return parts.model.apply({"params": params}, images, method="features")

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

  def of_network(params):
    return knn(
      lambda images: evaluate.extract(
        lambda x: features(params, x),
        images,
        config.evaluate_batch_size,
        meshes.batch_sharding(mesh),
      )
    )

  def evaluate_state(state, due):
    return of_network(state.teacher["backbone"]) if due else {}

  def baselines():
    fresh = init_state(parts, loop.init_key(config)).teacher["backbone"]
    found = {
      "raw_pixels": knn(lambda images: evaluate.pixels(images, config.mean)),
      "untrained": of_network(fresh),
    }
    return {
      f"{name}_{source}": value
      for source, values in found.items()
      for name, value in values.items()
    }

  return evaluate_state, baselines


def make_stage(config, dataset, steps_per_epoch, mesh):
  """Stage 1 as the loop runs it."""
  parts = make(config, steps_per_epoch, mesh)
  evaluate_state, baselines = make_evaluate(parts, dataset)
  return loop.Stage(
    init=jax.jit(functools.partial(init_state, parts, loop.init_key(config))),
    step=make_step(parts),
    evaluate=evaluate_state,
    baselines=baselines,
    summarize=summarize,
    parameters=models.count(parts.model),
    trained=lambda state: state.student,
    warn=functools.partial(alarms.collapse_warning, config, steps_per_epoch),
  )


def summarize(lines):
  """The final figure: the last k-NN accuracy, where there has been one."""
  knn = [line["knn"] for line in lines if "knn" in line]
  last = {"knn": knn[-1]} if knn else {}
  return last | metrics.best_on_val(lines, "knn")
