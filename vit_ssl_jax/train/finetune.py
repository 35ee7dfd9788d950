"""Stage 2: supervised fine-tuning, from a teacher's weights or from scratch."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_ssl_jax import cli, evaluate, models
from vit_ssl_jax.augment import (
  autoaugment as policies,
  mix,
  multi_crop as views,
  supervised,
)
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.interop import pretrained
from vit_ssl_jax.parallel import mesh as sharding
from vit_ssl_jax.run import (
  checkpoints,
  metrics,
  recipes,
  schema as checks,
  workdir as workdirs,
)
from vit_ssl_jax.train import (
  accumulation,
  inputs,
  loop,
  losses,
  optimizers,
  schedules,
)


@flax.struct.dataclass
class FinetuneState:
  """All that a step changes.

  Attributes:
    step: () int32, steps done.
    params: the classifier's parameters, float32.
    offset_head: parameters of the head of dense relative localisation, or {}.
    opt_state: the optimizer's state, of both.
  """

  step: jax.Array
  params: dict
  offset_head: dict
  opt_state: optax.OptState


def make_schedule(config, steps_per_epoch):
  """The learning rate, (steps,)."""
  o = config.optim
  return schedules.finetune_learning_rate(
    o.learning_rate,
    o.min_learning_rate,
    config.epochs * steps_per_epoch,
    o.warmup_epochs * steps_per_epoch,
  )


def sample_pairs(key, pairs, grid):
  """Positions of random pairs of an image's tokens.

  Args:
    key: PRNG key.
    pairs: M, how many.
    grid: (h, w) the number of rows and of columns.

  Returns:
    (2, M, 2) rows and columns, independent and uniform.
  """
  ends = jnp.asarray(grid)[None, None]
  return jax.random.randint(key, (2, pairs, 2), 0, ends)


def localization(params, grid, keys, pairs):
  """The loss of dense relative localisation on random pairs of tokens.

  Args:
    params: of a `models.OffsetHead`.
    grid: (B, h, w, D) tokens.
    keys: (B,) PRNG keys, one for each image.
    pairs: how many pairs of each image.

  Returns:
    A scalar.
  """
  B, h, w, D = grid.shape
  first, second = jax.vmap(
    lambda key: sample_pairs(key, pairs, (h, w)), out_axes=1
  )(keys)
  tokens = grid.reshape(B, h * w, D)

  def at(place):
    # A product, for its gradient adds up in the same order every time.
    chosen = jax.nn.one_hot(place[..., 0] * w + place[..., 1], h * w)
    return jnp.einsum(
      "bmn,bnd->bmd", chosen, tokens, precision=jax.lax.Precision.HIGHEST
    )

  both = jnp.concatenate([at(first), at(second)], -1)
  offsets = models.OffsetHead().apply({"params": params}, both)
  return losses.dense_relative_localization(offsets, first, second, (h, w))


def make_update(config, model, optimizer, mesh=None):
  """Makes the part of a step that comes after augmentation and mixing.

  Args:
    config: the run's config.
    model: a classifier of `models.build`.
    optimizer: an optax transformation.
    mesh: over which the state is sharded; None is one device.

  Returns:
    A pure function (state, images (B, H, W, 3), targets (B, C), key) ->
    (state, metrics), the images being normalised.
  """
  whole = sharding.whole(mesh)

  def update(state, images, targets, key):
    def loss_fn(trained, batch):
      params, offset_head = whole(trained)
      images, targets, masks, pair_keys = batch
      logits, grid = model.apply(
        {"params": params},
        images,
        masks,
        whole=bool(offset_head),
        method="logits_and_grid",
      )
      loss = losses.classification(logits, targets, config.label_smoothing)
      if not offset_head:
        return loss, {}
      drloc = localization(offset_head, grid, pair_keys, config.drloc.pairs)
      return loss + config.drloc.weight * drloc, {"drloc": drloc}

    trained = (state.params, state.offset_head)
    masks = models.drop_path(model, key, (len(images), 1))
    pair_keys = jax.random.split(jax.random.fold_in(key, 1), len(images))
    (loss, parts), gradients = accumulation.gradients(
      loss_fn,
      trained,
      (images, targets, masks, pair_keys),
      config.accumulate_steps,
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    params, offset_head = optax.apply_updates(trained, updates)
    new_state = FinetuneState(state.step + 1, params, offset_head, opt_state)
    norm = optax.tree.norm(gradients)
    return new_state, {"loss": loss, **parts, "gradient_norm": norm}

  return update


def make_train_step(config, model, optimizer, learning_rate, mesh=None):
  """Makes stage 2's step.

  Args:
    config: the run's config.
    model: a classifier of `models.build`.
    optimizer: an optax transformation.
    learning_rate: (steps,), to report.
    mesh: over which the state is sharded; None is one device.

  Returns:
    A pure function (state, {"image": (B, H, W, 3) uint8, "label": (B,)}) ->
    (state, metrics); what is random in it comes from config.seed and
    state.step alone.
  """
  update = make_update(config, model, optimizer, mesh)
  root = loop.step_key(config)

  def train_step(state, batch):
    view_key, mix_key, drop_key = jax.random.split(
      jax.random.fold_in(root, state.step), 3
    )
    images = supervised.supervised_views(
      view_key, batch["image"], config.augment, config.mean, config.std
    )
    targets = jax.nn.one_hot(batch["label"], model.num_classes)
    images, targets = mix.random_mix(mix_key, images, targets, **config.mix)
    state, values = update(state, images, targets, drop_key)
    rate = jnp.asarray(learning_rate, jnp.float32)[state.step - 1]
    return state, values | {"learning_rate": rate}

  return train_step


def init_state(model, optimizer, key, drloc=False):
  """Fresh parameters, and an optimizer that has done nothing.

  Args:
    model: a classifier of `models.build`.
    optimizer: an optax transformation.
    key: PRNG key.
    drloc: whether there is a head for dense relative localisation.
  """
  params, offset_head = models.init(model, key), {}
  if drloc:
    pair = jnp.zeros((1, 2 * model.num_features))
    head_key = jax.random.fold_in(key, 1)
    offset_head = models.OffsetHead().init(head_key, pair)["params"]
  return state_of(params, offset_head, optimizer)


def state_of(params, offset_head, optimizer):
  """The state of step 0 with these parameters."""
  opt_state = optimizer.init((params, offset_head))
  step = jnp.zeros((), jnp.int32)
  return FinetuneState(step, params, offset_head, opt_state)


def read_init(config, model):
  """The parameters of config.init_from that replace fresh ones.

  Args:
    config: the run's config; with init_from="" there are none.
    model: a model without classes, which the parameters have to fit.

  Returns:
    A dict of parameters, with those of a head if init_from has one, and what
    is known of them, of `provenance.KEYS`.

  Raises:
    UserError: init_from is nothing of `pretrained.read`, or does not fit.
  """
  if not config.init_from:
    return {}, {}
  given = pretrained.read(config.init_from)
  what = f"init_from={config.init_from}"
  params, lines = pretrained.fit(given, model, what)
  if given.about.get("config"):
    warn_of_seen(config, given.about["config"])
  for line in lines:
    cli.say(line)
  return params, given.about


def keep_head(config, params, about, classes):
  """The parameters of `read_init`, without a head that is not for `classes`."""
  keep, line = pretrained.head(params, about, classes)
  if line:
    cli.say(f"init_from={config.init_from}: {line}")
  return {k: x for k, x in params.items() if keep or k != "head"}


def make_predict(model, mean, std):
  """Makes (params, images (B, H, W, 3) uint8) -> logits (B, C)."""

  def predict(params, images):
    images = views.evaluation_view(images, mean, std)
    return model.apply({"params": params}, images)

  return predict


def make_top1(config, model, mesh):
  """Makes what gives a classifier's top-1 accuracy, compiled once.

  Args:
    config: the run's, with mean and std.
    model: a classifier of `models.build`.
    mesh: over which batches are sharded.

  Returns:
    (params, images (N, S, S, 3) uint8, labels (N,)) -> percent of all images.
  """
  predict = jax.jit(make_predict(model, config.mean, config.std))

  def top1(params, images, labels):
    return evaluate.top1(
      lambda images: predict(params, images),
      images,
      labels,
      config.evaluate_batch_size,
      sharding.batch_sharding(mesh),
    )

  return top1


def warn_of_seen(config, source):
  """Says where the weights may come from images that this run tests on."""
  keys = ("test_fraction", "split_seed")
  differ = [key for key in keys if source.get(key) != config[key]]
  own = config.dataset.startswith("folder:")
  # An exported file knows the folder's last name alone.
  names = [recipes.last_name(x["dataset"]) for x in (source, config)]
  if own and names[0] == names[1] and differ:
    cli.say(
      f"warning: init_from={config.init_from} was trained with another"
      f" {' and '.join(differ)}: where {config.dataset} has no train and test,"
      " it has seen images that this run tests on"
    )


def check(config):
  """Raises a UserError where a config's value makes no sense."""
  checks.common(config)
  checks.choice(config, "augment.autoaugment", ["", *policies.POLICIES])
  checks.share(config, "label_smoothing")
  checks.positive(config, "drloc.pairs")
  checks.not_negative(config, "drloc.weight")
  if config.drloc.enabled and config.model.name == "cait":
    raise UserError(
      "drloc.enabled=True: dense relative localisation is for vit and swin,"
      " not for cait"
    )
  checks.interval(config, "augment.erasing_area")


def run(config, workdir):
  """Fine-tunes a classifier in `workdir`, or goes on with it.

  Returns:
    The content of result.json: `top1` after the last step and
    `best_top1_on_test`, over all evaluations, both in percent of all test
    images, and, with validation images, `metrics.best_on_val`'s, beside the
    figures of every run.

  Raises:
    UserError: something given does not fit; the message says what.
  """
  workdirs.agree(config)
  backbone_model = models.from_config(config, num_classes=0)
  check(config)
  mesh = sharding.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  workdirs.check(config, workdir)
  # What does not fit is said before the data set is read. A run that goes on
  # from its own checkpoint no longer needs where it came from.
  given, about = {}, {}
  if not checkpoints.any_in(workdir):
    given, about = read_init(config, backbone_model)
  config, dataset, source = inputs.open_data(config, mesh)
  given = keep_head(config, given, about, dataset.classes)
  workdirs.make(config, workdir, dataset)
  model = models.from_config(config, num_classes=len(dataset.classes))
  learning_rate = make_schedule(config, source.steps_per_epoch)
  optimizer = optimizers.finetune(learning_rate, config.optim.weight_decay)

  fresh = jax.jit(
    lambda: init_state(
      model, optimizer, loop.init_key(config), config.drloc.enabled
    )
  )

  def first_state():
    state = fresh()
    return state.replace(params=state.params | given)

  top1 = make_top1(config, model, mesh)

  def evaluate_state(state, due):
    del due  # the test set is small enough to look at whenever a run stops
    return {
      f"{prefix}top1": top1(state.params, images, labels)
      for prefix, images, labels in evaluate.parts(dataset)
    }

  return loop.run(
    config,
    workdir,
    mesh=mesh,
    model=model,
    init_state=first_state,
    train_step=make_train_step(config, model, optimizer, learning_rate, mesh),
    source=source,
    evaluate=evaluate_state,
    summarize=summarize,
  )


def summarize(lines):
  """The final figures: the last top-1, and the best of all by test or val."""
  top1 = [line["top1"] for line in lines if "top1" in line]
  last = {"top1": top1[-1], "best_top1_on_test": max(top1)} if top1 else {}
  return last | metrics.best_on_val(lines, "top1")
