"""A run's folder: its config, the data set it is trained on, and its result."""

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
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.run import checkpoints, metrics

# What may change when a run resumes: it decides how far the run goes and how
# fast, and not what a step computes.
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
  "kernels",
  "steps_per_dispatch",
  "on_collapse",
)
# How long a process waits for the first one's file to show itself, in seconds.
PATIENCE = 10


def command(workdir):
  """The command that a run was started with, or ""."""
  path = pathlib.Path(workdir, "command.txt")
  return path.read_text().strip() if path.is_file() else ""


def claim(config, workdir):
  """Checks a config, and that a workdir is new or belongs to its run.

  Raises:
    UserError: on every process, where a value of the config makes no sense,
      the processes have different configs or folders, or the workdir holds
      another run, whose keys the message names.
  """
  with hosts.sync_errors():
    schema.check(config)
  own = schema.flat(json.loads(schema.dump(config)))
  own.pop("data_dir")  # of each host
  hosts.assert_equal(own, "config")
  with hosts.sync_errors():
    check_owner(config, workdir)
  if jax.process_count() > 1:
    check_shared(workdir)


def check_owner(config, workdir):
  """Raises a UserError where a workdir is not this config's, and not new."""
  if not pathlib.Path(workdir, "config.json").exists():
    if checkpoints.steps(workdir):
      raise UserError(
        f"{workdir} holds checkpoints and no config.json: put it back, or"
        " choose another --workdir"
      )
    above = existing(workdir)
    if not (above.is_dir() and os.access(above, os.W_OK)):
      raise UserError(f"cannot write to --workdir={workdir}: see {above}")
    return
  old = schema.flat(schema.read_config(workdir))
  new = schema.flat(json.loads(schema.dump(config)))
  new.pop("format")
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


def existing(path):
  """The nearest of a path and the folders it lies in that there is."""
  path = pathlib.Path(path).absolute()
  return next(x for x in (path, *path.parents) if x.exists())


def check_shared(workdir):
  """Checks that the workdir is, or will be, one folder for all processes.

  Raises:
    UserError: a file that the first process has made there is not seen by all.
  """
  path = pathlib.Path(workdir).absolute()
  above = [path, *path.parents]
  level, name = hosts.broadcast(
    [above.index(existing(path)), f".{uuid.uuid4().hex}.tmp"]
  )
  file = above[level] / name
  try:
    with hosts.sync_errors():
      if hosts.is_primary():
        touch(file)
    until = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < until:
      time.sleep(0.1)
    blind = [i for i, x in enumerate(hosts.all_gather(file.exists())) if not x]
  finally:
    if hosts.is_primary():
      file.unlink(missing_ok=True)
  if blind:
    raise UserError(
      f"--workdir={workdir} has to be one folder that all processes see: what"
      f" process 0 writes there is not seen by {', '.join(map(str, blind))}"
    )


def touch(file):
  """Makes an empty file.

  Raises:
    UserError: its folder cannot be written to.
  """
  try:
    file.touch()
  except OSError as e:
    raise UserError(f"cannot write to {file.parent}: {e.strerror}") from e


@contextlib.contextmanager
def opened(config, workdir, dataset):
  """A workdir that is this process's alone: makes it, or goes on with it.

  It gets config.json, dataset.json and command.txt.

  Raises:
    UserError: it cannot be written to, another process is training in it, it
      holds another run, or one that was trained on other images, or processes
      have read other images.
  """
  path = pathlib.Path(workdir)
  described = describe(dataset)
  hosts.assert_equal(schema.flat(described), "data set")
  with contextlib.ExitStack() as stack:
    with hosts.sync_errors():
      check_owner(config, workdir)
      check_dataset(path, described)
    with hosts.sync_errors():  # after all have looked
      if hosts.is_primary():
        try:
          path.mkdir(parents=True, exist_ok=True)
          stack.enter_context(locked(path))
          write(path, config, described)
        except OSError as e:
          raise UserError(f"cannot write to --workdir={workdir}: {e}") from e
    yield


def write(path, config, described):
  """Writes config.json, dataset.json and, for a new run, command.txt."""
  files.write(path / "config.json", schema.dump(config))
  files.write(path / "dataset.json", json.dumps(described, indent=2) + "\n")
  if not (path / "command.txt").exists():
    started = shlex.join(["python", *sys.orig_argv[1:]])
    files.write(path / "command.txt", started + "\n")


@contextlib.contextmanager
def locked(path):
  """Keeps other processes from training in a workdir.

  The system lets go of the lock when this process ends, however it ends.
  """
  with (path / ".lock").open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(
        f"another process is training in {path}: wait for it, or choose another"
        " --workdir"
      ) from e
    except OSError:
      cli.log(f"warning: {path} cannot be locked: start one process there only")
    yield


def describe(dataset):
  """What is to be known of a `load.Dataset` later, as a dict.

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


def check_dataset(path, described):
  """Raises a UserError where a run goes on with other images."""
  if not checkpoints.steps(path):
    return
  if not (path / "dataset.json").exists():
    cli.log(
      f"warning: {path} has no dataset.json any more: whether the images are"
      " those that it was trained on cannot be told"
    )
    return
  check_same(files.read_json(path / "dataset.json"), described, path)


def check_same(old, new, workdir):
  """Raises a UserError where a data set has changed since a run's start."""
  what = {"classes": "classes", "images": "numbers of images"}
  what["sha256"] = "images or labels"
  for key, word in what.items():
    if old.get(key, new[key]) != new[key]:
      raise UserError(
        f"{workdir} was trained on something else: the {word} of"
        f" {new['name']} changed since"
      )


def finished(workdir, step):
  """The result of a run that has reached a step, or None."""
  path = pathlib.Path(workdir, "result.json")
  try:
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["step"] == step else None
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, KeyError):
    cli.log(f"warning: {path} is damaged")
    return None


def scratch_beside(workdir):
  """Runs from scratch in the same folder, on the same images and as long.

  Yields:
    (workdir, top-1 in percent) of each that has finished.
  """
  workdir = pathlib.Path(workdir).absolute()
  own = schema.flat(schema.read_config(workdir))
  for path in sorted(workdir.parent.glob("*/result.json")):
    try:
      other = schema.flat(schema.read_config(path.parent))
      top1 = files.read_json(path).get("top1")
    except UserError:
      continue
    differ = {k for k in own | other if own.get(k) != other.get(k)}
    differ -= {*MAY_CHANGE, "mean", "std"} - {"max_steps"}
    if differ == {"init_from"} and other["init_from"] == "" and top1:
      yield path.parent, top1


def baselines(workdir, measure):
  """What was measured before a run's first step, kept in baselines.json.

  Args:
    workdir: the run's folder.
    measure: () -> a dict of figures, where the file is not there.
  """
  path = pathlib.Path(workdir, "baselines.json")
  found = hosts.broadcast(files.read_json(path) if path.is_file() else None)
  if found is None:
    found = hosts.broadcast(measure())
    if hosts.is_primary() and found:
      files.write(path, json.dumps(found, indent=2) + "\n")
  return found


def write_result(workdir, state, summarize, figures):
  """Writes result.json, the run's final figures.

  Args:
    workdir: the run's folder, whose metrics.jsonl is complete.
    state: the final one.
    summarize: (all lines of metrics) -> dict of figures.
    figures: a dict of further ones, which take precedence.

  Returns:
    Its content, on every process.
  """
  digest = checkpoints.sha256(state)  # of what lies on all hosts
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
    text = json.dumps(result, indent=2) + "\n"
    files.write(pathlib.Path(workdir, "result.json"), text)
  return hosts.broadcast(result)
