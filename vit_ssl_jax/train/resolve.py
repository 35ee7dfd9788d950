"""Fills in hyperparameters for a custom data set and a compute budget."""

import pathlib
import re
import time

import jax

from vit_ssl_jax import cli, train
from vit_ssl_jax.data import facts as data_facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.recipes import custom, keys, schema
from vit_ssl_jax.train import timing

UNITS = {"h": 3600, "m": 60, "s": 1}
POSSIBLE = "a time such as 30m, 2h or 1h30m, or a number of steps such as 5000"
# Of a budget, the share that steps get; the rest is for compiling, evaluation
# and checkpoints.
SHARE = 0.85
TRIAL_SECONDS = 5  # that steps are timed for; a twentieth of short budgets


def seconds_of(text):
  """A time budget in seconds, or None for a number of steps."""
  if re.fullmatch(r"[1-9]\d*", text):
    return None
  match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
  seconds = 0
  if match:
    parts = zip(UNITS.values(), match.groups(), strict=True)
    seconds = sum(unit * int(x or 0) for unit, x in parts)
  if not seconds:
    raise UserError(f"budget={text!r} must be {POSSIBLE}")
  return seconds


def resolve(config, workdir, dataset=None):
  """A copy of a config whose keys all have values.

  Keys without a value take that of the run in the workdir, or follow from the
  images, the device and the budget (`custom.resolve`); these are logged.
  """
  config = config.copy_and_resolve_references()
  small = jax.default_backend() == "cpu"
  schema.set_remat(config, on_cpu=small)
  if not schema.is_unset(config):
    return config
  seconds = seconds_of(config.budget) if config.budget else None
  if pathlib.Path(workdir, "config.json").is_file():
    load_unset(config, schema.read_config(workdir))
    keys.drop_unread(config)
    if not schema.is_unset(config):  # else it is another run's
      return config
  if config.get("init_from"):
    load_model_config(config)
  with hosts.sync_errors():
    facts = data_facts.look(config, dataset)
  passes = None
  if config.budget:
    plain = config.copy_and_resolve_references()
    custom.resolve(plain, facts, small=small)
    if seconds:
      passes = passes_in(seconds, plain, facts)
    else:
      passes = plain.batch_size * int(config.budget)
  rows = custom.resolve(config, facts, small=small, passes=passes)
  cells = [(key, repr(value), why) for key, value, why in rows]
  cli.log(
    f"recipe for {facts.images:,} training images in {facts.classes} classes:"
  )
  cli.log(cli.table(("key", "value", "why"), cells, left=True))
  return config


def load_unset(config, saved):
  """Gives keys without a value that of a run's config.json."""
  for key, value in config.items():
    if hasattr(value, "items"):
      load_unset(value, saved.get(key, {}))
    elif value is None and key in saved:
      old = saved[key]
      config[key] = tuple(old) if isinstance(old, list) else old


def load_model_config(config):
  """Gives the model the sizes of the weights of init_from."""
  from vit_ssl_jax.train import initial

  load_unset(config.model, initial.model_sizes(config))


def passes_in(seconds, config, facts):
  """The number of images that training takes in so many seconds, by timing."""
  cli.log("timing a training step")
  began = time.perf_counter()
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  timed = min(TRIAL_SECONDS, seconds / 20)
  make_stage = train.stage_of(config).make_stage
  rate = timing.rate(config, make_stage, facts.classes, timed)
  tried = time.perf_counter() - began
  compiling = max(0, tried - timed)  # which the run itself does once more
  left = seconds - tried - compiling
  passes = hosts.broadcast(int(rate * SHARE * left))
  cli.log(f"{rate:,.0f} images/s on {jax.devices()[0].device_kind}")
  if passes < facts.images:
    raise UserError(
      f"budget={config.budget} is too little: to compile and time a step takes"
      f" {cli.duration(tried + compiling)}, an epoch of {facts.images:,} images"
      f" {cli.duration(facts.images / rate)}; give more, a smaller model or a"
      " smaller data_fraction"
    )
  return passes
