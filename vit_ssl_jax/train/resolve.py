"""Completes the config of a run on images of one's own, within a budget."""

import pathlib
import re
import time

import jax

from vit_ssl_jax import cli
from vit_ssl_jax.data import facts as data_facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.recipes import custom, keys, schema
from vit_ssl_jax.train import stages, timing

UNITS = {"h": 3600, "m": 60, "s": 1}
POSSIBLE = "a time such as 30m, 2h or 1h30m, or a number of steps such as 5000"
# Of a budget, the share that steps get; the rest is for compiling, evaluation
# and checkpoints.
SHARE = 0.85
TRIAL_SECONDS = 5  # that steps are timed for; a twentieth of short budgets


def seconds_of(text):
  """A budget of time in seconds, or None where it counts steps.

  Raises:
    UserError: it is neither.
  """
  if re.fullmatch(r"[1-9]\d*", text):
    return None
  found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
  seconds = 0
  if text and found:
    parts = zip(UNITS.values(), found.groups(), strict=True)
    seconds = sum(unit * int(x or 0) for unit, x in parts)
  if not seconds:
    raise UserError(f"budget={text!r} must be {POSSIBLE}")
  return seconds


def resolve(config, workdir, dataset=None):
  """A config whose keys all have values.

  Those that are open come from the run that a workdir holds, or else from
  `custom.resolve`; it is said which values it has chosen, and why.

  Args:
    config: the run's; of a set of the paper's it is given back as it is.
    workdir: the run's folder.
    dataset: as for `train.run`.

  Raises:
    UserError: the budget, the images or the weights to begin with cannot be
      read.
  """
  config = config.copy_and_resolve_references()
  keys.drop_unread(config)
  if not custom.is_unset(config):
    return config
  seconds = seconds_of(config.budget) if config.budget else None
  if pathlib.Path(workdir, "config.json").is_file():
    load_unset(config, schema.read_config(workdir))
    keys.drop_unread(config)
    if not custom.is_unset(config):  # else it is another run's
      return config
  if config.get("init_from"):
    load_model_config(config)
  with hosts.sync_errors():
    facts = data_facts.look(config, dataset)
  small = jax.default_backend() == "cpu"
  passes = None
  if config.budget:
    plain = config.copy_and_resolve_references()
    custom.resolve(plain, facts, small=small)
    if seconds:
      passes = passes_in(seconds, plain, facts)
    else:
      passes = plain.batch_size * int(config.budget)
  rows = custom.resolve(config, facts, small=small, passes=passes)
  shown = [(key, repr(value), why) for key, value, why in rows]
  cli.log(
    f"a recipe for {facts.images:,} training images in {facts.classes} classes:"
  )
  cli.log(cli.table(("key", "value", "why"), shown, left=True))
  return config


def load_unset(config, saved):
  """Gives open keys the values that they have in a run's config.json."""
  for key, value in config.items():
    if hasattr(value, "items"):
      load_unset(value, saved.get(key, {}))
    elif value is None and key in saved:
      found = saved[key]
      config[key] = tuple(found) if isinstance(found, list) else found


def load_model_config(config):
  """Gives the model the sizes of the weights that it begins with."""
  from vit_ssl_jax.train import initial

  load_unset(config.model, initial.model_sizes(config))


def passes_in(seconds, config, facts):
  """How many images steps take in so many seconds, by trying.

  Raises:
    UserError: it would not be one epoch.
  """
  cli.log("measuring how long a step takes")
  began = time.perf_counter()
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  timed = min(TRIAL_SECONDS, seconds / 20)
  make_stage = stages.get(config).make_stage
  found = timing.rate(config, make_stage, facts.classes, timed)
  tried = time.perf_counter() - began
  compiling = max(0, tried - timed)  # which the run itself does once more
  left = seconds - tried - compiling
  passes = hosts.broadcast(int(found * SHARE * left))
  cli.log(f"{found:,.0f} images a second on {jax.devices()[0].device_kind}")
  if passes < facts.images:
    raise UserError(
      f"budget={config.budget} is too little: to compile and time a step takes"
      f" {cli.duration(tried + compiling)}, an epoch of {facts.images:,} images"
      f" {cli.duration(facts.images / found)}; give more, a smaller model or a"
      " smaller data_fraction"
    )
  return passes
