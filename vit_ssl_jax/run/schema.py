"""What the values of a config may be, checked once, before a run does anything.

The recipes in `configs/` say which keys there are, what they mean and of which
type they are; sizes of models are checked by `models.build`.
"""

import difflib
import json
import math
import pathlib

from flax import traverse_util

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError

# Of config.json. Raised where an older run can no longer be read.
FORMAT = 2

# Key -> the least value.
LEAST = {
  "seed": 0,
  "split_seed": 0,
  "epochs": 1,
  "batch_size": 1,
  "accumulate_steps": 1,
  "max_steps": 0,  # 0 is the whole run
  "steps_per_dispatch": 0,  # 0 is chosen by the device
  "log_every_steps": 1,
  "checkpoint_every_steps": 1,
  "evaluate_every_epochs": 1,
  "evaluate_batch_size": 1,
  "keep_last": 1,
  "keep_every_epochs": 0,
  "mesh.fsdp": 1,
  "optim.warmup_epochs": 0,
  "optim.freeze_last_layer_epochs": 0,
  "head.out_dim": 1,
  "head.hidden_dim": 1,
  "head.bottleneck_dim": 1,
  "views.global_size": 1,
  "views.local_size": 1,
  "views.local_views": 0,
  "augment.crop_padding": 0,
  "drloc.pairs": 1,
  "drloc.weight": 0,
}
# Key -> what it may be, and whether a number is that.
SHARES = {
  "val_fraction": ("in [0, 1)", lambda x: 0 <= x < 1),
  "memory_share": ("in [0, 1)", lambda x: 0 <= x < 1),
  "label_smoothing": ("in [0, 1)", lambda x: 0 <= x < 1),
  "model.drop_path_rate": ("in [0, 1)", lambda x: 0 <= x < 1),
  "test_fraction": ("in (0, 1)", lambda x: 0 < x < 1),
  "data_fraction": ("in (0, 1]", lambda x: 0 < x <= 1),
}
CHOICES = {
  "dtype": ("auto", "float32", "bfloat16"),
  "placement": ("auto", "device", "host", "disk"),
  "resize": ("crop", "squash"),
  "data_fraction_keeps": ("epochs", "steps"),
  "teacher.centering": ("mean", "sinkhorn"),
  "augment.autoaugment": ("", "cifar", "svhn", "imagenet"),
}
# Two shares of an image's area.
INTERVALS = ("views.global_scale", "views.local_scale", "augment.erasing_area")
LENGTHS = {"views.color_jitter": 4, "views.blur_probability": 3}
PATCHES = ("views.global_size", "views.local_size")


def flat(config):
  """A ConfigDict or nested dict as {"a.b": value}."""
  tree = config.to_dict() if hasattr(config, "to_dict") else config
  return traverse_util.flatten_dict(tree, sep=".")


def dump(config):
  """A config as the text of config.json."""
  content = {"format": FORMAT} | config.to_dict()
  return json.dumps(content, indent=2) + "\n"


def read_config(workdir):
  """A run's config, as a dict.

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
  return config


def check(config):
  """Raises a UserError that names the first key whose value makes no sense."""
  values = flat(config)
  for key, value in values.items():
    may = expected(key, value)
    if may:
      raise UserError(f"{key}={value} has to be {may}")
    if key in CHOICES and value not in CHOICES[key]:
      raise UserError(unknown(key, value, CHOICES[key]))
  for key in PATCHES:
    patch = values["model.patch_size"]
    if key in values and patch > 0 and values[key] % patch:
      raise UserError(
        f"{key}={values[key]} is not a multiple of model.patch_size={patch}"
      )
  drloc = values.get("drloc.enabled")
  if drloc and values["model.name"] not in ("vit", "swin"):
    raise UserError(
      "drloc.enabled=True: dense relative localisation is for vit and swin,"
      f" not for {values['model.name']}"
    )


def expected(key, value):
  """What a key's value has to be, or None where it is that."""
  if isinstance(value, float) and not math.isfinite(value):
    return "a finite number"
  if key in LEAST and value < LEAST[key]:
    return f"at least {LEAST[key]}"
  if key in SHARES and not SHARES[key][1](value):
    return SHARES[key][0]
  if key in LENGTHS and len(value) != LENGTHS[key]:
    return f"{LENGTHS[key]} numbers"
  if key in INTERVALS and not is_interval(value):
    return "two shares of the area, low and high, in (0, 1]"
  if key in ("mean", "std") and not fits_channels(value, key == "std"):
    return "three numbers in [0, 1], a std above 0, or () for the set's own"
  return None


def is_interval(value):
  numbers = all(isinstance(x, int | float) for x in value)
  return len(value) == 2 and numbers and 0 < value[0] <= value[1] <= 1


def fits_channels(value, positive):
  inside = all(0 <= x <= 1 and (x or not positive) for x in value)
  return len(value) in (0, 3) and inside


def unknown(key, value, choices):
  """The sentence for a value that is none of the choices."""
  near = difflib.get_close_matches(str(value), choices, 1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  known = ", ".join(map(repr, choices))
  return f"{key}={value!r} is unknown: {hint}possible are {known}"
