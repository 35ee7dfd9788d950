"""Checks a config before a run begins, and reads and writes it.

`keys.KEYS` has every key of both recipes; `--help` and docs/config.md are made
from it. How sizes of a model have to fit together is checked by `models.build`.
"""

import json
import pathlib

from flax import traverse_util

from vit_ssl_jax import files, models
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.recipes.keys import KEYS, drop_unread

# Of config.json. Raised where an older run can no longer be read.
FORMAT = 3


def flat(config):
  """A ConfigDict or nested dict as {"a.b": value}."""
  tree = config.to_dict() if hasattr(config, "to_dict") else config
  return traverse_util.flatten_dict(tree, sep=".")


def is_unset(config):
  """True if a key has no value yet, as in the recipes of custom data sets."""
  return None in flat(config).values()


def dump(config):
  """A config as the text of config.json."""
  content = {"format": FORMAT} | config.to_dict()
  return json.dumps(content, indent=2) + "\n"


def read_config(workdir):
  """A run's config, a dict, with the names that keys have today.

  Raises:
    UserError: there is none, it is damaged, or of an older version.
  """
  path = pathlib.Path(workdir, "config.json")
  config = files.read_json(path)
  if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
    raise UserError(
      f"{workdir} is a run of another version of vit-ssl-jax (config.json has"
      f" no format {FORMAT}): export it with the version that trained it and"
      " give init_from the file, or train again"
    )
  return with_new_names(config)


def with_new_names(config):
  """A config of version 0.2.0 with the names of today."""
  if "fast_attention" in config:
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
  """Changes values of a ConfigDict.

  Args:
    config: which is changed.
    values: a dict of them by their keys, such as "model.depth".

  Raises:
    UserError: there is no such key, or its values are of another type.
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
  """Raises a UserError that names the first key whose value makes no sense."""
  values = flat(config)
  for name, value in values.items():
    refuse_old_names(name, value)
    key = KEYS.get(name)
    if key is None:
      raise UserError(unknown("the config's key", name, list(KEYS)))
    if not fits(key, value):
      near = nearest(value, key.possible)
      raise UserError(f"{name}={value!r} must be {key.possible}{near}")
  check_relations(values)


def fits(key, value):
  """Whether a value is what a key may be."""
  try:
    return bool(key.fits(value))
  except (TypeError, ValueError, OverflowError):
    return False


def nearest(value, possible):
  """A hint for a misspelt choice, or ""."""
  choices = possible.replace("'", "").split(" or ")
  return did_you_mean(value, choices)


def check_supported(setting, feature, enabled, name):
  """Raises a UserError where an architecture lacks an enabled feature."""
  if enabled and not getattr(models.ARCHITECTURES[name], feature):
    known = models.those_with(feature)
    raise UserError(f"{setting} is for {known}, not for {name}")


def check_relations(values):
  """Raises a UserError where values do not fit to each other."""

  def at_most(name, other, why):
    if name in values and other in values and values[name] > values[other]:
      raise UserError(
        f"{name}={values[name]} is more than {other}={values[other]}: {why}"
      )

  if values["optim.warmup_epochs"] >= values["epochs"]:
    raise UserError(
      f"optim.warmup_epochs={values['optim.warmup_epochs']} must be less than"
      f" epochs={values['epochs']}"
    )
  at_most(
    *("teacher.temperature_warmup_epochs", "epochs"),
    "it would not end within the run",
  )
  at_most(
    *("optim.freeze_last_layer_epochs", "epochs"),
    "the last layer would never be trained",
  )
  at_most(
    *("optim.min_learning_rate", "optim.learning_rate"),
    "the learning rate falls from the one to the other",
  )
  at_most(
    *("views.local_size", "views.global_size"),
    "local views are the smaller ones",
  )
  patch = values["model.patch_size"]
  for name in ("views.global_size", "views.local_size"):
    if values.get(name, 0) % patch:
      raise UserError(
        f"{name}={values[name]} is not a multiple of model.patch_size={patch}"
      )
  name = values["model.name"]
  mae, drloc = values.get("objective") == "mae", values.get("drloc.enabled")
  check_supported("objective=mae", "mae", mae, name)
  check_supported("drloc.enabled=True", "drloc_weight", drloc, name)


def unknown(key, value, choices):
  """The sentence for a value that is none of the choices."""
  hint = did_you_mean(value, choices) or ":"
  known = ", ".join(map(repr, choices))
  return f"{key}={value!r} is unknown{hint} possible are {known}"


def rows(config):
  """(key, value, what is possible, meaning) of each of a recipe's keys."""
  for name, value in flat(config).items():
    if name in KEYS:
      yield name, value, KEYS[name].possible, KEYS[name].meaning
