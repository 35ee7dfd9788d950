"""Measures how fast a stage's step is, with and without augmentation.

  python -m vit_ssl_jax.benchmark --arch=vit --stage=pretrain --batch_size=512
  python -m vit_ssl_jax.benchmark --arch=swin --stage=finetune --json

The step is the one that training makes, by the recipe of --dataset, on random
images that lie on the device. Rounds with and without augmentation take turns;
the figures are medians over the rounds.

  images_per_second    with augmentation
  compile_seconds      of that step, nothing being in JAX's cache
  input_share          how much longer the step is for augmentation, in percent
                       of the step without
  model_flops          an image's floating-point operations in matrix products,
                       forwards and backwards, counted in the step's program
  peak_share           those done in a second, in percent of what the devices
                       can do in bfloat16; none where that is not known
  memory_bytes         what the compiled step takes at most, on one device
"""

import functools
import json
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from configs import finetune as finetune_recipe, pretrain as pretrain_recipe
from vit_ssl_jax import finetune, loop, models, optimizers, pretrain, sharding
from vit_ssl_jax.augment import views
from vit_ssl_jax.commands import Parser, reporting_errors, set_up
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.report import tables

# Dense bfloat16 operations a second, by the beginning of a device's kind, from
# its maker's data sheet.
PEAK = {
  "NVIDIA H100 80GB HBM3": 989e12,  # the one with SXM
  "NVIDIA H200": 989e12,
  "NVIDIA A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
}
STEPS_PER_EPOCH = 100  # of the schedules, which cost nothing
CLASSES = 10
WARM_UP = 2  # steps


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  args = parse(argv)
  with reporting_errors():
    set_up()
    jax.config.update("jax_enable_compilation_cache", False)
    found = measure(make_config(args), args.steps, args.rounds)
  shown = {k: v for k, v in found.items() if v is not None}
  print(tables.table(("benchmark", ""), shown.items()))
  if args.json:
    print(json.dumps(found))


def parse(argv):
  parser = Parser(
    prog="python -m vit_ssl_jax.benchmark",
    usage="%(prog)s [--arch=vit] [--stage=pretrain] [options]",
    description=__doc__,
  )
  option = parser.add_argument
  option("--arch", default="vit", choices=["vit", "swin", "cait"])
  option("--stage", default="pretrain", choices=["pretrain", "finetune"])
  option("--dataset", default="cifar10", help="whose recipe; %(default)s")
  option("--batch_size", type=int, default=0, help="global; the recipe's")
  option(
    "--dtype",
    default="auto",
    choices=["auto", "float32", "bfloat16"],
    help="of the model's body; bfloat16 on an accelerator if left out",
  )
  option("--steps", type=int, default=10, help="of a round; %(default)s")
  option("--rounds", type=int, default=5, help="%(default)s if left out")
  option("--json", action="store_true", help="a last line of JSON, too")
  return parser.parse_args(argv)


def make_config(args):
  """The recipe that the arguments name."""
  for key in ("steps", "rounds"):
    if getattr(args, key) < 1:
      raise UserError(f"--{key}={getattr(args, key)} has to be at least 1")
  recipes = {"pretrain": pretrain_recipe, "finetune": finetune_recipe}
  try:
    config = recipes[args.stage].get_config(f"{args.arch},{args.dataset}")
  except ValueError as e:
    raise UserError(str(e).replace("config's argument", "recipe")) from e
  config.update(dtype=args.dtype, mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  return config


def measure(config, steps, rounds):
  """Measures a config's step.

  Args:
    config: of either stage, with mean and std.
    steps: how many are timed together.
    rounds: how often.

  Returns:
    The figures, a dict.

  Raises:
    UserError: the batch cannot be split over the devices.
  """
  mesh = sharding.make_mesh(config.mesh.fsdp, config.batch_size)
  placed = sharding.batch_sharding(mesh)
  rng = np.random.default_rng(0)
  side, count = config.model.image_size, config.batch_size
  batch = {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "label": rng.integers(0, CLASSES, count, np.int32),
  }
  batch = jax.device_put(batch, placed)
  runs, flops = {}, 0
  for augmented in (True, False):
    init, step = stage(config, augmented)
    shardings = sharding.state_sharding(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    traced = step.trace(state, batch)
    flops = count_flops(traced.jaxpr.jaxpr)  # of the last: without augmentation
    began = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    runs[augmented] = Timed(compiled, state, batch, seconds)
  for run in runs.values():
    run.go(WARM_UP)
  for _ in range(rounds):
    for run in runs.values():
      run.rounds.append(run.go(steps) / steps)
  step_seconds = {k: statistics.median(run.rounds) for k, run in runs.items()}
  rate = count / step_seconds[True]
  memory = runs[True].compiled.memory_analysis()
  kind = jax.devices()[0].device_kind
  peak = next((v for k, v in PEAK.items() if kind.startswith(k)), None)
  return {
    "arch": config.model.name,
    "stage": config.stage,
    "dataset": config.dataset,
    "batch_size": count,
    "dtype": str(models.compute_dtype(config)),
    "images_per_second": rate,
    "step_seconds": step_seconds[True],
    "step_seconds_without_augmentation": step_seconds[False],
    "input_share": 100 * (step_seconds[True] / step_seconds[False] - 1),
    "compile_seconds": runs[True].compile_seconds,
    "model_flops": flops / count,
    "peak_share": peak
    and 100 * flops / step_seconds[True] / (peak * jax.device_count()),
    "memory_bytes": memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "devices": jax.device_count(),
    "device": kind,
    "jax": jax.__version__,
  }


class Timed:
  """A compiled step, its state, and how long its rounds took.

  Attributes:
    compiled: (state, batch) -> (state, metrics); the state is donated.
    compile_seconds: how long that took.
    rounds: seconds of a step, round by round.
  """

  def __init__(self, compiled, state, batch, compile_seconds):
    self.compiled = compiled
    self.state = state
    self.batch = batch
    self.compile_seconds = compile_seconds
    self.rounds = []

  def go(self, steps):
    """Makes steps, waiting for the last alone; gives the seconds."""
    began = time.perf_counter()
    for _ in range(steps):
      self.state, metrics = self.compiled(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - began


def stage(config, augmented):
  """A stage's () -> state, and its step (state, batch) -> (state, metrics)."""
  if config.stage == "pretrain":
    return pretraining(config, augmented)
  return finetuning(config, augmented)


def pretraining(config, augmented):
  """As `stage`; without augmentation views are the images' upper left."""
  model = models.from_config(config, num_classes=0)
  head = models.ProjectionHead(**config.head, dtype=model.dtype)
  schedules = pretrain.make_schedules(config, STEPS_PER_EPOCH)
  optimizer = pretrain.make_optimizer(config, schedules, STEPS_PER_EPOCH)
  parts = (config, model, head, optimizer, schedules)
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


def finetuning(config, augmented):
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
    return init, finetune.make_train_step(config, model, optimizer, rates)
  update = finetune.make_update(config, model, optimizer)

  def step(state, batch):
    images = views.evaluation_view(batch["image"], config.mean, config.std)
    key = jax.random.fold_in(loop.step_key(config), state.step)
    targets = jax.nn.one_hot(batch["label"], CLASSES)
    return update(state, images, targets, key)

  return init, step


def count_flops(jaxpr):
  """Floating-point operations of a program's matrix products.

  A product of (M, K) and (K, N) has 2 · M · K · N. What is scanned counts as
  often as it is done.
  """
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    total += times * sum(map(count_flops, core.jaxprs_in_params(eqn.params)))
  return total


if __name__ == "__main__":
  main()
