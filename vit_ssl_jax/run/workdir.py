"""The workdir: config.json, dataset.json, the lock, result.json."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shlex
import sys
import time
import uuid

import jax
import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.recipes import keys, schema
from vit_ssl_jax.run import checkpoints, metrics

SHARED_SECONDS = 10  # until a file of process 0 must be seen by all


def command(workdir):
  """Returns the command that started a run, or ""."""
  path = pathlib.Path(workdir, "command.txt")
  return path.read_text().strip() if path.is_file() else ""


def claim(config, workdir):
  """Checks a config, and that a workdir is new or belongs to it."""
  with hosts.sync_errors():
    schema.check(config)
  values = flat(config)
  values.pop("data_dir")  # each host may have its own
  hosts.assert_equal(values, "config")
  with hosts.sync_errors():
    check_owner(config, workdir)
  if not hosts.single_process():
    check_shared(workdir)


def flat(config):
  """The values of a config as config.json holds them, by their keys."""
  return schema.flat(json.loads(schema.dump(config)))


def check_owner(config, workdir):
  """Raises a UserError if a workdir is neither new nor this config's."""
  if not pathlib.Path(workdir, "config.json").exists():
    if checkpoints.steps(workdir):
      raise UserError(
        f"{workdir} holds checkpoints but no config.json: restore it, or choose"
        " another --workdir"
      )
    parent = existing_parent(workdir)
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
      raise UserError(f"cannot write to --workdir={workdir}: see {parent}")
    return
  changed = changes(schema.flat(schema.read_config(workdir)), flat(config))
  if changed:
    raise UserError(
      f"{workdir} holds another run, whose config differs in"
      f" {', '.join(changed)}: choose another --workdir"
    )


def changes(old, new):
  """Lists the differences between flat configs that a resume does not allow."""
  return [
    f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
    for key in sorted((old.keys() | new.keys()) - {"format", *keys.RESUMABLE})
    if old.get(key) != new.get(key)
    # Not yet computed from the images.
    and not (key in ("mean", "std") and new.get(key) == [])
  ]


def existing_parent(path):
  path = pathlib.Path(path).absolute()
  return next(x for x in (path, *path.parents) if x.exists())


def check_shared(workdir):
  """Raises a UserError if the processes do not share the workdir's folder."""
  path = pathlib.Path(workdir).absolute()
  levels = [path, *path.parents]
  level, name = hosts.broadcast(
    [levels.index(existing_parent(path)), f".{uuid.uuid4().hex}.tmp"]
  )
  file = levels[level] / name
  try:
    with hosts.sync_errors():
      if hosts.is_primary():
        try:
          file.touch()
        except OSError as e:
          raise UserError(f"cannot write to {file.parent}: {e.strerror}") from e
    until = time.monotonic() + SHARED_SECONDS
    while not file.exists() and time.monotonic() < until:
      time.sleep(0.1)
    seen = hosts.all_gather(file.exists())
  finally:
    if hosts.is_primary():
      file.unlink(missing_ok=True)
  if not all(seen):
    blind = ", ".join(str(i) for i, sees in enumerate(seen) if not sees)
    raise UserError(
      f"--workdir={workdir} must be a folder shared by all processes: a file"
      f" that process 0 writes there is not seen by {blind}"
    )


@contextlib.contextmanager
def opened(config, workdir, dataset):
  """Creates or reopens a workdir, and locks it for this run."""
  path = pathlib.Path(workdir)
  description = describe(dataset)
  hosts.assert_equal(schema.flat(description), "data set")
  with contextlib.ExitStack() as stack:
    with hosts.sync_errors():
      check_owner(config, workdir)
      check_dataset(path, description)
    with hosts.sync_errors():  # all have checked before the first writes
      if hosts.is_primary():
        try:
          path.mkdir(parents=True, exist_ok=True)
          stack.enter_context(locked(path))
          files.write(path / "config.json", schema.dump(config))
          files.write_json(path / "dataset.json", description)
          if not (path / "command.txt").exists():
            text = shlex.join(["python", *sys.orig_argv[1:]])
            files.write(path / "command.txt", text + "\n")
        except OSError as e:
          raise UserError(f"cannot write to --workdir={workdir}: {e}") from e
    yield


@contextlib.contextmanager
def locked(path):
  """Locks a workdir for this process, until it ends in any way."""
  with (path / ".lock").open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(
        f"another process is training in {path}: wait for it, or choose another"
        " --workdir"
      ) from e
    except OSError:
      cli.log(
        f"warning: cannot lock {path}: do not start a second process there"
      )
    yield


def describe(dataset):
  """Describes a `load.Dataset` as JSON; its digests hold in any order."""
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


def check_dataset(path, description):
  """Raises a UserError if a run would resume on other images."""
  if not checkpoints.steps(path):
    return
  if (path / "dataset.json").exists():
    check_same(files.read_json(path / "dataset.json"), description, path)
  else:
    cli.log(f"warning: without {path}/dataset.json, images are not compared")


def check_same(old, new, workdir):
  """Raises a UserError if a data set has changed since a run's start."""
  names = {"classes": "classes", "images": "numbers of images"}
  names["sha256"] = "images or labels"
  for key, name in names.items():
    if old.get(key, new[key]) != new[key]:
      raise UserError(
        f"dataset {new['name']} changed since {workdir} was created: its {name}"
        " differ"
      )


def finished(workdir, step):
  """Returns the result of a run that ended at a step, or None."""
  path = pathlib.Path(workdir, "result.json")
  try:
    result = files.read_json(path) if path.exists() else {"step": None}
    return result if result["step"] == step else None
  except (UserError, TypeError, KeyError):
    cli.log(f"warning: {path} is damaged")
    return None


def baselines(workdir, measure):
  """Reads baselines.json, or measures and writes it before the first step."""
  path = pathlib.Path(workdir, "baselines.json")
  figures = hosts.broadcast(files.read_json(path) if path.is_file() else None)
  if figures is None:
    figures = hosts.broadcast(measure())
    if hosts.is_primary() and figures:
      files.write_json(path, figures)
  return figures


def write_result(workdir, state, summarize, figures):
  """Writes result.json, and returns it on all processes."""
  digest = checkpoints.sha256(state)  # of shards on all hosts
  result = None
  if hosts.is_primary():
    lines = metrics.read(workdir)
    result = {
      **summarize(lines),
      **figures,
      "loss": lines[-1].get("loss") if lines else None,
      "state_sha256": digest,
      **checkpoints.environment(),
      "devices": [str(d.device_kind) for d in jax.devices()],
      "platform": jax.default_backend(),
    }
    files.write_json(pathlib.Path(workdir, "result.json"), result)
  return hosts.broadcast(result)
