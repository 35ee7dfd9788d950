"""Checks, reads and writes a config."""

import json
import pathlib

from flax import traverse_util

from vit_ssl_jax import files, models
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.recipes.keys import KEYS, drop_unread

FORMAT = 3  # of config.json


def flat(config):
  """A ConfigDict or nested dict as {"a.b": value}."""
  tree = config.to_dict() if hasattr(config, "to_dict") else config
  return traverse_util.flatten_dict(tree, sep=".")


def is_unset(config):
  """True if a key has no value yet, as in the recipes of custom data sets."""
  return None in flat(config).values()


def set_remat(config, on_cpu):
  """Gives `remat` a value if the recipe leaves it to the device, as CaiT's."""
  if config.remat is None:
    config.remat = not on_cpu


def dump(config):
  """A config as the text of config.json."""
  content = {"format": FORMAT} | config.to_dict()
  return json.dumps(content, indent=2) + "\n"


def read_config(workdir):
  """A run's config, a dict with today's names.

  Raises:
    UserError: it is missing, damaged or of another version.
  """
  config = files.read_json(pathlib.Path(workdir, "config.json"))
  if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
    raise UserError(
      f"{workdir} is a run of another version of vit-ssl-jax (config.json has"
      f" no format {FORMAT}): export it with the version that trained it and"
      " give init_from the file, or train again"
    )
  if "fast_attention" in config:  # of version 0.2.0
    config["kernels"] = "auto" if config.pop("fast_attention") else "xla"
  if config.get("objective") == "patches":
    config["objective"] = "mae"
    drop_unread(config)
  return config


def refuse_old_names(key, value=None):
  """Raises a UserError that has the new name of a key or a value."""
  if key == "fast_attention":
    raise UserError("fast_attention is now kernels='auto' or kernels='xla'")
  if (key, value) == ("objective", "patches"):
    raise UserError("objective='patches' is now objective='mae'")


def change(config, values):
  """Changes values of a ConfigDict by their keys, such as "model.depth".

  Raises:
    UserError: a key is unknown, or a value is of another type.
  """
  known = flat(config)
  for key, value in values.items():
    refuse_old_names(key, value)
    if key not in known:
      raise UserError(
        f"the config has no key {key!r}{did_you_mean(key, known)}"
      )
    try:
      config.update_from_flattened_dict({key: value})
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise UserError(f"{key}={value!r}: {e}") from e


def check(config):
  """Raises a UserError that names the first key with an invalid value."""
  values = flat(config)
  for name, value in values.items():
    refuse_old_names(name, value)
    key = KEYS.get(name)
    if key is None:
      raise UserError(unknown("the config's key", name, list(KEYS)))
    if not fits(key, value):
      choices = key.possible.replace("'", "").split(" or ")
      hint = did_you_mean(value, choices)
      raise UserError(f"{name}={value!r} must be {key.possible}{hint}")
  check_relations(values)


def fits(key, value):
  try:
    return bool(key.fits(value))
  except (TypeError, ValueError, OverflowError):
    return False


# (key, another key that it must not exceed, reason).
AT_MOST = (
  (
    *("teacher.temperature_warmup_epochs", "epochs"),
    "it would not end within the run",
  ),
  (
    *("optim.freeze_last_layer_epochs", "epochs"),
    "the last layer would never be trained",
  ),
  (
    *("optim.min_learning_rate", "optim.learning_rate"),
    "the learning rate falls from the one to the other",
  ),
  (
    *("views.local_size", "views.global_size"),
    "local views are the smaller ones",
  ),
)


def check_relations(values):
  """Raises a UserError if values do not fit together."""
  if values["optim.warmup_epochs"] >= values["epochs"]:
    raise UserError(
      f"optim.warmup_epochs={values['optim.warmup_epochs']} must be less than"
      f" epochs={values['epochs']}"
    )
  for name, other, why in AT_MOST:
    if name in values and other in values and values[name] > values[other]:
      raise UserError(
        f"{name}={values[name]} is more than {other}={values[other]}: {why}"
      )
  patch = values["model.patch_size"]
  for name in ("views.global_size", "views.local_size"):
    if values.get(name, 0) % patch:
      raise UserError(
        f"{name}={values[name]} is not a multiple of model.patch_size={patch}"
      )
  arch = values["model.name"]
  for name, value, feature in (
    ("objective", "mae", "mae"),
    ("drloc.enabled", True, "drloc_weight"),
  ):
    supported = getattr(models.ARCHITECTURES[arch], feature)
    if values.get(name) == value and not supported:
      known = models.those_with(feature)
      raise UserError(f"{name}={value} is for {known}, not for {arch}")


def unknown(key, value, choices):
  """The message for an unknown value."""
  hint = did_you_mean(value, choices) or ":"
  known = ", ".join(map(repr, choices))
  return f"{key}={value!r} is unknown{hint} possible are {known}"


def rows(config):
  """(key, value, possible values, meaning) of each key of a recipe."""
  for name, value in flat(config).items():
    if name in KEYS:
      yield name, value, KEYS[name].possible, KEYS[name].meaning
