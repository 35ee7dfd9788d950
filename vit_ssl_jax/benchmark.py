"""Measures the throughput of a stage's training step.

  python -m vit_ssl_jax.benchmark --arch=vit --stage=pretrain --batch_size=512
  python -m vit_ssl_jax.benchmark --stage=finetune --config.model.depth=6 --json
  python -m vit_ssl_jax.benchmark --steps=3 --rounds=1 --trace=/tmp/trace

The step is the one that training runs, with augmentation, by the recipe of
--dataset, on random images that lie on the devices. Run it in a clone of the
project: it needs configs/.

  images_per_second  of all devices together, by step_seconds
  step_seconds       the median over the rounds; rounds has each of them
  compile_seconds    without JAX's compilation cache
  memory_bytes       of the compiled step, on one device
"""

import ast
import contextlib
import functools
import importlib
import json
import statistics
import time
import types

import jax
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.cli import Parser, reporting_errors, set_up
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.report import tables
from vit_ssl_jax.train import finetune, pretrain

SETTING = "--config."
STEPS_PER_EPOCH = 100  # of the schedules; the step takes as long with any
CLASSES = 10
WARM_UP = 2  # steps


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  args, settings = parse(argv)
  with reporting_errors():
    config = make_config(args, settings)
    set_up()
    jax.config.update("jax_enable_compilation_cache", False)
    figures = measure(config, args.steps, args.rounds, args.trace)
  if args.json:
    print(json.dumps(figures))
  else:
    figures.pop("rounds")
    print(tables.table(("benchmark", ""), figures.items()))


def parse(argv=None):
  """Parses the arguments.

  Returns:
    The arguments, and the values of --config.KEY=VALUE by their keys.
  """
  parser = Parser(
    prog="python -m vit_ssl_jax.benchmark",
    usage="%(prog)s [options] [--config.KEY=VALUE ...]",
    description=__doc__,
  )
  option = parser.add_argument
  option("--arch", default="vit", help="%(default)s if left out")
  option("--stage", default="pretrain", choices=["pretrain", "finetune"])
  option("--dataset", default="cifar10", help="whose recipe; %(default)s")
  option("--batch_size", type=int, help="global; the recipe's")
  dtypes = ["auto", "float32", "bfloat16"]
  option("--dtype", default="auto", choices=dtypes, help="of the model's body")
  option("--steps", type=int, default=10, help="of a round; %(default)s")
  option("--rounds", type=int, default=5, help="%(default)s")
  option("--trace", metavar="FOLDER", help="a trace of the rounds, for XProf")
  option("--json", action="store_true", help="one line of JSON, not a table")
  args, rest = parser.parse_known_args(argv)
  settings = {}
  for argument in rest:
    key, equals, value = argument.removeprefix(SETTING).partition("=")
    if not (argument.startswith(SETTING) and equals):
      parser.error(f"unrecognized arguments: {argument}")
    settings[key] = literal(value)
  return args, settings


def literal(text):
  """A value as Python would write it, or else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def make_config(args, settings):
  """The recipe that the arguments name, with some of its values changed.

  Raises:
    UserError: there is no such recipe, key or value.
  """
  for key in ("steps", "rounds"):
    if getattr(args, key) < 1:
      raise UserError(f"--{key}={getattr(args, key)} has to be at least 1")
  try:
    recipe = importlib.import_module(f"configs.{args.stage}")
  except ModuleNotFoundError as e:
    raise UserError(
      "there is no package configs here: run the benchmark in a clone of the"
      " project"
    ) from e
  try:
    config = recipe.get_config(f"{args.arch},{args.dataset}")
  except ValueError as e:
    raise UserError(str(e)) from e
  config.update(dtype=args.dtype, mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  for key, value in settings.items():
    *parts, last = key.split(".")
    try:
      part = functools.reduce(getattr, parts, config)
      getattr(part, last)  # or an error; a new key would be added in silence
      setattr(part, last, value)
    except (AttributeError, TypeError) as e:
      raise UserError(f"{SETTING}{key}={value}: {e}") from e
  return config


def stage(config, mesh=None):
  """A stage's () -> state, and its step (state, batch) -> (state, metrics).

  Args:
    config: of either stage, with mean and std.
    mesh: over which the state is sharded; None is one device.
  """
  module = {"pretrain": pretrain, "finetune": finetune}[config.stage]
  dataset = types.SimpleNamespace(classes=range(CLASSES))  # not evaluated
  made = module.make_stage(config, dataset, STEPS_PER_EPOCH, mesh)
  return made.init, made.step


def random_batch(config):
  """Random images (B, S, S, 3) uint8 and labels (B,) int32."""
  rng = np.random.default_rng(0)
  count, side = config.batch_size, config.model.image_size
  return {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "label": rng.integers(0, CLASSES, count, np.int32),
  }


def measure(config, steps, rounds, trace=None):
  """Compiles and times a step.

  Args:
    config: of either stage, with mean and std.
    steps: how many are timed together, of which the last is waited for.
    rounds: how often.
    trace: a folder for a trace of the rounds, or None.

  Returns:
    The figures, a dict that JSON can hold.

  Raises:
    UserError: the devices do not divide the batch.
  """
  mesh = meshes.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  init, step = stage(config, mesh)
  shardings = meshes.state_sharding(mesh, jax.eval_shape(init))
  state = meshes.place(init(), shardings)
  batch = jax.device_put(random_batch(config), meshes.batch_sharding(mesh))
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  traced = step.trace(state, batch)
  began = time.perf_counter()
  compiled = traced.lower().compile()
  compile_seconds = time.perf_counter() - began

  def run(state, count):
    """Runs steps; the state and the seconds of one of them."""
    began = time.perf_counter()
    for _ in range(count):
      state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - began) / count

  state, _ = run(state, WARM_UP)
  taken = []
  with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
    for _ in range(rounds):
      state, seconds = run(state, steps)
      taken.append(seconds)
  memory = compiled.memory_analysis()
  seconds = statistics.median(taken)
  return {
    "arch": config.model.name,
    "stage": config.stage,
    "dataset": config.dataset,
    "batch_size": config.batch_size,
    "dtype": str(models.compute_dtype(config)),
    "images_per_second": config.batch_size / seconds,
    "step_seconds": seconds,
    "rounds": taken,
    "compile_seconds": compile_seconds,
    "memory_bytes": memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


if __name__ == "__main__":
  main()
