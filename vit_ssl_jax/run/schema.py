"""Checks of a config's values, each with one clear sentence."""

import difflib

from vit_ssl_jax.cli import UserError


def common(config):
  """Checks what both stages share."""
  for key in ("epochs", "batch_size", "log_every_steps", "keep_last"):
    positive(config, key)
  for key in ("evaluate_every_epochs", "checkpoint_every_steps"):
    positive(config, key)
  share(config, "model.drop_path_rate")
  positive(config, "evaluate_batch_size")
  positive(config, "accumulate_steps")
  not_negative(config, "steps_per_dispatch")
  for key in ("keep_every_epochs", "optim.warmup_epochs", "seed"):
    not_negative(config, key)
  choice(config, "dtype", ["auto", "float32", "bfloat16"])
  choice(config, "placement", ["auto", "device", "host", "disk"])
  choice(config, "data_fraction_keeps", ["epochs", "steps"])
  share(config, "memory_share")
  not_negative(config, "split_seed")
  for key in ("mean", "std"):
    given = tuple(config[key])
    fit = all(0 <= x <= 1 and (x or key == "mean") for x in given)
    if len(given) not in (0, 3) or not fit:
      raise UserError(
        f"{key}={given} has to be three numbers in [0, 1], a std above 0, or ()"
        " for the set's own"
      )
  if config.max_steps < 0:
    raise UserError(
      f"max_steps={config.max_steps}: give 0 for the whole run, or how many"
      " steps to stop after"
    )


def value(config, key):
  """The value at a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def positive(config, key):
  if value(config, key) < 1:
    raise UserError(f"{key}={value(config, key)} has to be at least 1")


def not_negative(config, key):
  if value(config, key) < 0:
    raise UserError(f"{key}={value(config, key)} has to be at least 0")


def length(config, key, count):
  if len(value(config, key)) != count:
    raise UserError(f"{key}={value(config, key)} has to be {count} numbers")


def share(config, key):
  if not 0 <= value(config, key) < 1:
    raise UserError(f"{key}={value(config, key)} has to be in [0, 1)")


def interval(config, key):
  """An interval (low, high) within (0, 1], as of a crop's share of the area."""
  given = tuple(value(config, key))
  numbers = all(isinstance(x, int | float) for x in given)
  if len(given) != 2 or not numbers or not 0 < given[0] <= given[1] <= 1:
    raise UserError(
      f"{key}={given} has to be two shares of the area, low and high, in (0, 1]"
    )


def multiple(config, key, of):
  """A number of pixels that patches divide."""
  if value(config, key) < 1 or value(config, key) % value(config, of):
    raise UserError(
      f"{key}={value(config, key)} is not a multiple of {of}"
      f"={value(config, of)}"
    )


def choice(config, key, options):
  given = value(config, key)
  if given not in options:
    near = difflib.get_close_matches(str(given), options, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(map(repr, options))
    raise UserError(f"{key}={given!r} is unknown: {hint}possible are {known}")
