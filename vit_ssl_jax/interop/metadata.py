"""Metadata of a model, and its form in exported files."""

import json
import pathlib
import re
import shlex

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.run import checkpoints, workdir as workdirs

# The metadata of a model, and of exported files: there every value is text, in
# JSON except for TEXTS.
KEYS = (
  "architecture",  # a key of models.ARCHITECTURES
  "model",  # its sizes
  "part",  # classifier, or teacher's backbone
  "classes",  # their names, in the order of the logits
  "mean",  # of the channels, in [0, 1]
  "std",
  "dataset",  # its name
  "images",  # number of images by split
  "step",
  "config",  # the run's
  "result",  # the content of its result.json
  "command",  # that trained it
  "layout",  # of the exported file
)
TEXTS = ("architecture", "part", "dataset", "command", "layout")
PRODUCER = {"producer": "vit-ssl-jax"}


def to_text(about):
  """Converts metadata to name -> text."""
  texts = {
    key: about[key]
    if key in TEXTS
    else json.dumps(about[key], ensure_ascii=False)
    for key in KEYS
    if key in about
  }
  return PRODUCER | {key: printable(text) for key, text in texts.items()}


def printable(text):
  """Escapes bytes of a folder's name, and so a class's, that are no UTF-8."""
  return text.encode("utf-8", "backslashreplace").decode()


def from_text(metadata, path):
  """Inverts `to_text`; metadata of other programs is ignored."""
  about = {}
  if not (isinstance(metadata, dict) and PRODUCER.items() <= metadata.items()):
    return about
  for key in KEYS:
    if key in metadata:
      try:
        text = metadata[key]
        about[key] = text if key in TEXTS else json.loads(text)
      except (ValueError, TypeError) as e:
        raise UserError(f"{path}: metadata field {key!r} is invalid") from e
  return about


def check(about, num_classes, path):
  """Checks the types and lengths of metadata; without a head, 0 classes."""

  def is_list(key, kind, length):
    values = about.get(key) or []
    return (
      isinstance(values, list | tuple)
      and all(isinstance(x, kind) for x in values)
      and len(values) in (0, length or len(values))
    )

  valid = {
    "model": isinstance(about.get("model", {}), dict),
    "config": isinstance(about.get("config", {}), dict),
    "classes": is_list("classes", str, num_classes),
    "mean": is_list("mean", (int, float), 3),
    "std": is_list("std", (int, float), 3),
  }
  for key, is_valid in valid.items():
    if not is_valid:
      raise UserError(f"{path}: metadata field {key!r} is invalid")


def without_folders(config):
  """Reduces the paths in a run's config to their last names."""
  kind, colon, path = config["dataset"].partition(":")
  dataset = kind + colon + last_name(path)
  config = config | {"dataset": dataset, "data_dir": ""}
  if config.get("init_from"):
    config["init_from"] = last_name(config["init_from"])
  return config


def last_name(path):
  """/a/b/c -> c; of a run's checkpoint, WORKDIR/checkpoints/STEP."""
  path = pathlib.PurePath(path)
  in_run = path.parent.name == checkpoints.FOLDER
  return "/".join(path.parts[-3 if in_run else -1 :])


def commands(workdir):
  """Returns the commands that trained a run, with its pretraining's first."""
  runs = [workdir]
  source = schema.read_config(workdir).get("init_from")
  if source and (before := checkpoints.workdir_of(source)):
    runs.insert(0, before)
  lines = [without_paths(workdirs.command(run)) for run in runs]
  return "\n".join(line for line in lines if line)


def without_paths(command):
  """Reduces the absolute paths in a command to their last names."""

  def cut(match):
    return match[1] + last_name(match[2])

  return shlex.join(
    re.sub(r"(^|[=:,])(/[^=:,]*)", cut, word) for word in shlex.split(command)
  )
