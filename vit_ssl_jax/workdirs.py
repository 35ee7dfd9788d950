"""A run's folder: its config, whose run it is, and its result."""

import hashlib
import json
import os
import pathlib
from importlib import metadata

import jax
import numpy as np

from vit_ssl_jax import checkpoints, files, metrics
from vit_ssl_jax.errors import UserError

# What may differ between the runs that share a workdir: it changes how far a
# run goes and what is said on the way, and not what a step computes.
MAY_CHANGE = (
  "max_steps",
  "log_every_steps",
  "checkpoint_every_steps",
  "keep_last",
  "keep_every_epochs",
  "data_dir",
  "placement",
  "memory_share",
  "tensorboard",
  "evaluate_batch_size",
  "mesh.fsdp",
  "accumulate_steps",
  "remat",
  "steps_per_dispatch",
)


def check(config, workdir):
  """Checks that a workdir is new, or belongs to this config's run.

  Raises:
    UserError: the workdir holds another run; the message names its keys.
  """
  if jax.process_count() > 1:
    raise UserError("training on several hosts is not there yet: use one")
  path = pathlib.Path(workdir, "config.json")
  if not path.exists():
    above = path.parent.absolute()
    while not above.exists():
      above = above.parent
    if not (above.is_dir() and os.access(above, os.W_OK)):
      raise UserError(f"cannot write to --workdir={workdir}: see {above}")
    return
  old, new = flat(json.loads(path.read_text())), flat(json.loads(dump(config)))
  changed = [
    f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and key not in MAY_CHANGE
    # Left to the set until that is read.
    and not (key in ("mean", "std") and new.get(key) == [])
  ]
  if changed:
    raise UserError(
      f"{workdir} holds another run, whose config differs in"
      f" {', '.join(changed)}: choose another --workdir"
    )


def make(config, workdir, dataset):
  """Makes a workdir, and writes into it the config and what it is trained on.

  That is dataset.json, the content of `describe`.

  Raises:
    UserError: it cannot be written to, or holds another run, or one that was
      trained on other images.
  """
  path = pathlib.Path(workdir, "config.json")
  about = path.with_name("dataset.json")
  described = describe(dataset)
  if checkpoints.any_in(workdir) and about.exists():
    check_same(json.loads(about.read_text()), described, workdir)
  check(config, workdir)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, dump(config))
    files.write(about, json.dumps(described, indent=2) + "\n")
  except OSError as e:
    raise UserError(f"cannot write to --workdir={workdir}: {e}") from e


def describe(dataset):
  """What is to be known of a `data.Dataset` later, as a dict.

  Its name, its classes in the order of the logits, mean and standard deviation,
  and for each part the number of images and a SHA-256 over labels and images,
  in which their order does not count.
  """
  counts, digests = {}, {}
  for part in ("train", "val", "test"):
    labels = getattr(dataset, f"{part}_labels")
    marks = getattr(dataset, f"{part}_fingerprints")
    order = np.lexsort((labels, marks))
    content = labels[order].tobytes() + marks[order].tobytes()
    counts[part] = len(labels)
    digests[part] = hashlib.sha256(content).hexdigest()
  return {
    "name": dataset.name,
    "classes": list(dataset.classes),
    "mean": list(dataset.mean),
    "std": list(dataset.std),
    "images": counts,
    "sha256": digests,
  }


def check_same(old, new, workdir):
  """Raises a UserError where a data set has changed since a run's start."""
  what = {"classes": "classes", "images": "number of images"}
  what["sha256"] = "images or labels"
  changed = [
    word for key, word in what.items() if old.get(key, new[key]) != new[key]
  ]
  if changed:
    raise UserError(
      f"{workdir} was trained on something else: the {changed[0]} of"
      f" {new['name']} changed since"
    )


def dump(config):
  """A config as JSON."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def flat(tree, prefix=""):
  """A nested dict as {"a.b": value}."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def finished(workdir, step):
  """The result of a run that has reached a step, or None."""
  path = pathlib.Path(workdir, "result.json")
  result = json.loads(path.read_text()) if path.exists() else {}
  return result if result.get("step") == step else None


def write_result(workdir, state, figures):
  """Writes result.json, the run's final figures, and returns its content."""
  lines = metrics.read(workdir)
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  result = {
    **figures,
    "step": lines[-1]["step"],
    "epoch": lines[-1]["epoch"],
    "loss": lines[-1]["loss"],
    "state_sha256": checkpoints.sha256(state),
    "devices": [str(d.device_kind) for d in jax.devices()],
    "platform": jax.default_backend(),
    "versions": {name: metadata.version(name) for name in packages},
  }
  files.write(
    pathlib.Path(workdir, "result.json"), json.dumps(result, indent=2) + "\n"
  )
  return result
