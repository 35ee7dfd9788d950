"""What is known of a model, and how an exported file says it."""

import json
import pathlib
import re
import shlex

import numpy as np

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.run import checkpoints, workdir as workdirs

# What is known of a model and its training, in an exported file's metadata
# too: each name's value as text, in JSON where it is not text itself.
KEYS = (
  "architecture",  # vit, swin or cait
  "model",  # its sizes
  "part",  # classifier, or teacher's backbone
  "classes",  # their names, in the order of the logits
  "mean",  # of the channels, in [0, 1]
  "std",
  "dataset",  # its name
  "images",  # how many of each part
  "step",
  "config",  # the run's
  "result",  # the content of its result.json
  "command",  # what trained it
  "layout",  # whose names the arrays have, in an exported file
)
TEXTS = ("architecture", "part", "dataset", "command", "layout")
PRODUCER = {"producer": "vit-ssl-jax"}


def to_text(about):
  """What is known of weights as metadata: name -> text."""
  texts = {
    key: about[key]
    if key in TEXTS
    else json.dumps(about[key], ensure_ascii=False)
    for key in KEYS
    if key in about
  }
  return PRODUCER | {key: printable(text) for key, text in texts.items()}


def printable(text):
  """Text as UTF-8 can hold it.

  A folder's name, and so a class's, may have bytes that are no letters.
  """
  return text.encode("utf-8", "backslashreplace").decode()


def from_text(metadata, path):
  """The inverse of `to_text`; what is not ours is left out.

  Raises:
    UserError: it is ours and damaged.
  """
  about = {}
  if not PRODUCER.items() <= metadata.items():
    return about
  for key in KEYS:
    if key in metadata:
      try:
        text = metadata[key]
        about[key] = text if key in TEXTS else json.loads(text)
      except (ValueError, TypeError) as e:
        raise UserError(f"{path}: what it says of its {key} is damaged") from e
  return about


def check(about, num_classes, path):
  """Checks that what is known of weights makes sense.

  Args:
    about: a dict of KEYS.
    num_classes: of their head; 0 without one.
    path: where they are from, for the message.

  Raises:
    UserError: it does not.
  """
  names = about.get("classes", [])
  fine = {
    "model": isinstance(about.get("model", {}), dict),
    "config": isinstance(about.get("config", {}), dict),
    "classes": isinstance(names, list | tuple)
    and all(isinstance(name, str) for name in names)
    and (not names or not num_classes or len(names) == num_classes),
  }
  for key in ("mean", "std"):
    numbers = about.get(key, [])
    fine[key] = isinstance(numbers, list | tuple) and (
      not numbers or (len(numbers) == 3 and np.isreal(numbers).all())
    )
  for key, good in fine.items():
    if not good:
      raise UserError(f"{path}: what it says of its {key} is damaged")


def without_folders(config):
  """A run's config, a dict, without the folders of this machine."""
  kind, colon, path = config["dataset"].partition(":")
  dataset = kind + colon + last_name(path)
  config = config | {"dataset": dataset, "data_dir": ""}
  if config.get("init_from"):
    config["init_from"] = last_name(config["init_from"])
  return config


def last_name(path):
  """/a/b/c -> c, and of a run's checkpoint WORKDIR/checkpoints/STEP."""
  path = pathlib.PurePath(path)
  in_run = path.parent.name == checkpoints.FOLDER
  return "/".join(path.parts[-3 if in_run else -1 :])


def commands(workdir):
  """The commands that trained a run, without the folders of this machine.

  The first is that of its pretraining, where config.init_from is a run that is
  still there.
  """
  found = [workdir]
  source = schema.read_config(workdir).get("init_from")
  if source and (before := checkpoints.workdir_of(source)):
    found.insert(0, before)
  lines = [shown(workdirs.command(each)) for each in found]
  return "\n".join(line for line in lines if line)


def shown(command):
  """A command, of whose absolute paths the last names are left."""

  def cut(found):
    return found[1] + last_name(found[2])

  return shlex.join(
    re.sub(r"(^|[=:,])(/[^=:,]*)", cut, word) for word in shlex.split(command)
  )
