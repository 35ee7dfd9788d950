"""Stage 1: self-supervised view prediction on the small set itself.

A student predicts, from one view of an image, what a momentum teacher makes
of another (the paper, section 3.1; DINO, Caron et al., 2021).
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_ssl_jax import evaluate, models
from vit_ssl_jax.augment import multi_crop as views
from vit_ssl_jax.data import inputs
from vit_ssl_jax.parallel import mesh as sharding
from vit_ssl_jax.run import metrics, schema as checks, workdir as workdirs
from vit_ssl_jax.train import (
  accumulation,
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
    teacher: the same tree, the student's moving average.
    opt_state: the optimizer's state.
    center: (K,) float32, running mean of the teacher's outputs.
  """

  step: jax.Array
  student: dict
  teacher: dict
  opt_state: optax.OptState
  center: jax.Array


def make_schedules(config, steps_per_epoch):
  """Tables of learning rate, weight decay, momentum and temperature by step.

  The learning rate in the config is for a batch of 256 and is scaled with the
  batch (Goyal et al., 2017).
  """
  o, t = config.optim, config.teacher
  steps = config.epochs * steps_per_epoch
  peak = o.learning_rate * config.batch_size / 256
  temperatures = schedules.teacher_temperature(
    t.warmup_temperature,
    t.temperature,
    config.epochs,
    t.temperature_warmup_epochs,
  )
  return {
    "learning_rate": schedules.pretrain_learning_rate(
      peak, o.min_learning_rate, steps, o.warmup_epochs * steps_per_epoch
    ),
    "weight_decay": schedules.cosine(o.weight_decay, o.weight_decay_end, steps),
    "momentum": schedules.cosine(t.momentum, 1.0, steps),
    "temperature": temperatures.repeat(steps_per_epoch),
  }


def make_optimizer(config, tables, steps_per_epoch):
  return optimizers.pretrain(
    tables["learning_rate"],
    tables["weight_decay"],
    clip=config.optim.clip_per_tensor,
    frozen_steps=config.optim.freeze_last_layer_epochs * steps_per_epoch,
  )


def init_state(model, head, optimizer, key):
  """A student, a teacher with the same weights, a centre at zero."""
  backbone_key, head_key = jax.random.split(key)
  features = jnp.zeros((1, model.num_features))
  student = {
    "backbone": models.init(model, backbone_key),
    "head": head.init(head_key, features)["params"],
  }
  return PretrainState(
    step=jnp.zeros((), jnp.int32),
    student=student,
    teacher=jax.tree.map(jnp.copy, student),
    opt_state=optimizer.init(student),
    center=jnp.zeros(head.out_dim),
  )


def project(model, head, params, batch):
  """Outputs of the projection head for views of several sizes.

  Args:
    model, head: the flax modules.
    params: {"backbone", "head"}.
    batch: of `views_with_masks`, or a part of one.

  Returns:
    (B, sum of V_i, K) float32.
  """
  features = model.apply(
    {"params": params["backbone"]},
    *batch,
    method="features_of_views",
  )
  return head.apply({"params": params["head"]}, features)


def views_with_masks(model, groups, train, key):
  """What `project` takes, with the batch as the outer axis of everything.

  Args:
    model: the flax module.
    groups: arrays (V_i, B, S_i, S_i, 3), one for each size.
    train: whether drop path is active.
    key: PRNG key for drop path.

  Returns:
    Arrays (B, V_i, S_i, S_i, 3), and (B, depth, 2, sum of V_i) or None.
  """
  count = sum(len(images) for images in groups)
  masks = models.drop_path(model, key, (groups[0].shape[1], count), train)
  return [images.swapaxes(0, 1) for images in groups], masks


def make_update(config, model, head, optimizer, tables, mesh=None):
  """Makes the part of a step that comes after augmentation.

  Args:
    config: the run's config.
    model, head: the flax modules.
    optimizer: of `make_optimizer`.
    tables: of `make_schedules`.
    mesh: over which the state is sharded; None is one device.

  Returns:
    A pure function (state, global_views (2, B, S, S, 3), local_views
    (V, B, s, s, 3), key) -> (state, metrics), the views being normalised.
  """
  t = config.teacher
  whole = sharding.whole(mesh)

  def update(state, global_views, local_views, key):
    student_key, teacher_key = jax.random.split(key)
    now = {
      name: jnp.asarray(table, jnp.float32)[state.step]
      for name, table in tables.items()
    }
    parts = config.accumulate_steps
    gathered = whole(state.teacher)
    teacher_logits = accumulation.outputs(
      lambda batch: project(model, head, gathered, batch),
      views_with_masks(model, [global_views], t.drop_path, teacher_key),
      parts,
    ).swapaxes(0, 1)
    if t.centering == "sinkhorn":
      targets = losses.sinkhorn_probabilities(
        teacher_logits, now["temperature"]
      )
    else:
      targets = losses.centered_probabilities(
        teacher_logits, state.center, now["temperature"]
      )

    def loss_fn(student, batch):
      batch, targets = batch
      logits = project(model, head, whole(student), batch).swapaxes(0, 1)
      loss = losses.view_prediction(
        logits, targets.swapaxes(0, 1), config.student_temperature
      )
      return loss, ()

    groups = [global_views, local_views] if len(local_views) else [global_views]
    batch = views_with_masks(model, groups, True, student_key)
    (loss, _), gradients = accumulation.gradients(
      loss_fn, state.student, (batch, targets.swapaxes(0, 1)), parts
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.student
    )
    student = optax.apply_updates(state.student, updates)
    m = now["momentum"]
    teacher = jax.tree.map(
      lambda old, new: old * m + new * (1 - m), state.teacher, student
    )
    entropy, divergence = losses.spread(targets)
    new_state = PretrainState(
      step=state.step + 1,
      student=student,
      teacher=teacher,
      opt_state=opt_state,
      center=losses.update_center(
        state.center, teacher_logits, t.center_momentum
      ),
    )
    return new_state, {
      "loss": loss,
      "teacher_entropy": entropy,
      "teacher_kl": divergence,
      "gradient_norm": optax.tree.norm(gradients),
      **now,
    }

  return update


def make_train_step(config, model, head, optimizer, tables, mesh=None):
  """Makes stage 1's step; the arguments are those of `make_update`.

  Returns:
    A pure function (state, {"image": (B, H, W, 3) uint8}) -> (state, metrics);
    what is random in it comes from config.seed and state.step alone.
  """
  update = make_update(config, model, head, optimizer, tables, mesh)
  root = loop.step_key(config)

  def train_step(state, batch):
    view_key, drop_key = jax.random.split(jax.random.fold_in(root, state.step))
    global_views, local_views = views.multi_crop(
      view_key, batch["image"], config.views, config.mean, config.std
    )
    return update(state, global_views, local_views, drop_key)

  return train_step


def check(config):
  """Raises a UserError where a config's value makes no sense."""
  checks.common(config)
  checks.choice(config, "teacher.centering", ["mean", "sinkhorn"])
  checks.interval(config, "views.global_scale")
  checks.interval(config, "views.local_scale")
  for key in ("views.global_size", "views.local_size"):
    checks.multiple(config, key, "model.patch_size")
  checks.not_negative(config, "views.local_views")
  checks.length(config, "views.color_jitter", 4)
  checks.length(config, "views.blur_probability", 3)


def run(config, workdir):
  """Pretrains a student and its teacher in `workdir`, or goes on with it.

  Returns:
    The content of result.json: `knn`, the accuracy of nearest neighbours on
    the teacher's features in percent of all test images, and, with validation
    images, `metrics.best_on_val`'s, beside the figures of every run.

  Raises:
    UserError: something given does not fit; the message says what.
  """
  workdirs.agree(config)
  model = models.from_config(config, num_classes=0)
  check(config)
  workdirs.check(config, workdir)
  mesh = sharding.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  head = models.ProjectionHead(**config.head, dtype=model.dtype)
  config, dataset, source = inputs.open_data(config, mesh)
  workdirs.make(config, workdir, dataset)
  tables = make_schedules(config, source.steps_per_epoch)
  optimizer = make_optimizer(config, tables, source.steps_per_epoch)

  @jax.jit
  def features(params, images):
    images = views.evaluation_view(images, config.mean, config.std)
    return model.apply({"params": params}, images, method="features")

  def evaluate_state(state, due):
    if not due:
      return {}
    backbone = state.teacher["backbone"]

    def extract(images):
      return evaluate.extract(
        lambda images: features(backbone, images),
        images,
        config.evaluate_batch_size,
        sharding.batch_sharding(mesh),
      )

    train = extract(dataset.train_images)
    return {
      f"{prefix}knn": evaluate.knn_accuracy(
        train,
        dataset.train_labels,
        extract(images),
        labels,
        len(dataset.classes),
      )
      for prefix, images, labels in evaluate.parts(dataset)
    }

  return loop.run(
    config,
    workdir,
    mesh=mesh,
    model=model,
    init_state=jax.jit(
      lambda: init_state(model, head, optimizer, loop.init_key(config))
    ),
    train_step=make_train_step(config, model, head, optimizer, tables, mesh),
    source=source,
    evaluate=evaluate_state,
    summarize=summarize,
    warn=lambda lines: warn_of_collapse(lines, source.steps_per_epoch, head),
  )


def summarize(lines):
  """The final figure: the last k-NN accuracy, where there has been one."""
  knn = [line["knn"] for line in lines if "knn" in line]
  last = {"knn": knn[-1]} if knn else {}
  return last | metrics.best_on_val(lines, "knn")


def warn_of_collapse(lines, steps_per_epoch, head):
  """A sentence where the teacher's outputs have collapsed, with remedies."""
  if len(lines) < 50 or lines[0]["step"] < steps_per_epoch:
    return None
  kind = metrics.collapse(lines, head.out_dim)
  if kind == "uniform":
    return (
      "the teacher's outputs have collapsed to uniform (the loss stays at"
      f" ln {head.out_dim} = {math.log(head.out_dim):.4f}), and nothing is"
      " being learnt; what helps: teacher.centering=sinkhorn, lower teacher"
      " temperatures, larger crops (views.global_scale, views.local_scale),"
      " less colour jitter; see README, Small sets"
    )
  if kind == "one-hot":
    return (
      "the teacher's outputs have collapsed to one (their entropy is 0), and"
      " nothing is being learnt; what helps: teacher.centering=sinkhorn, higher"
      " teacher temperatures, a smaller optim.learning_rate; see README, Small"
      " sets"
    )
  return None
