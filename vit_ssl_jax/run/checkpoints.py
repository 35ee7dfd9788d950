"""Orbax checkpoints: asynchronous, atomic, verified by SHA-256."""

import contextlib
import hashlib
import inspect
import json
import logging
import pathlib
import re
import shutil
import sys
import time
import warnings
from importlib import metadata

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError, line
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.recipes import schema

FOLDER = "checkpoints"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def manager(workdir, keep_last, keep_every_steps):
  """Yields a Checkpointer; the newest, best and every so many are kept."""
  policies = ocp.training.preservation_policies
  best = policies.BestN(
    get_metric_fn=lambda metrics: metrics["val"],
    n=1,
    keep_checkpoints_without_metrics=False,
  )
  keep = [policies.LatestN(keep_last), best]
  if keep_every_steps:
    keep.append(policies.EveryNSteps(keep_every_steps))
  folder = pathlib.Path(workdir, FOLDER).absolute()
  with write_errors(folder):
    checkpointer = ocp.training.Checkpointer(
      folder,
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
  with contextlib.ExitStack() as stack:
    if hosts.is_primary():
      stack.callback(remove_incomplete, folder)
    stack.callback(write_errors(folder)(checkpointer.close))
    yield checkpointer


def remove_incomplete(folder):
  """Deletes incomplete checkpoints; pending async tasks may recreate them."""
  for _ in range(20):
    incomplete = list(folder.glob("*.orbax-checkpoint-tmp*"))
    for path in incomplete:
      shutil.rmtree(path, ignore_errors=True)
    if not incomplete:
      return
    time.sleep(0.1)


@contextlib.contextmanager
def write_errors(folder):
  """Turns errors of Orbax and TensorStore into a UserError."""
  try:
    yield
  except Exception as e:
    if not hosts.single_process():
      raise  # the other processes may not fail: see `hosts.exit_on_error`
    raise UserError(
      f"could not write a checkpoint to {folder} ({short(e)}): earlier ones are"
      " intact, and the same command resumes from there"
    ) from e


def short(error):
  """The reason in a long error of TensorStore, or its beginning."""
  reason = re.search(
    "No space left on device|File too large|Read-only file system"
    "|Permission denied|Disk quota exceeded",
    " ".join(str(error).split()),
  )
  return reason[0] if reason else line(error)


def save(checkpointer, step, state, val=None, lines=None):
  """Saves a state, its validation figure and the digest of metrics.jsonl."""
  metrics = None if val is None else {"val": val}
  about = {"lines": lines} | environment()
  about["sha256"] = digest_of(state, about)
  with write_errors(pathlib.Path(checkpointer.directory)):
    checkpointer.save_async(
      step, state, force=True, metrics=metrics, custom_metadata=about
    )


def environment():
  """Devices and package versions, on which the bits of a state depend."""
  return {
    "devices": sorted({str(d.device_kind) for d in jax.devices()}),
    "versions": {name: metadata.version(name) for name in PACKAGES},
  }


def steps(workdir):
  """Lists the steps of a workdir's checkpoints, the newest first."""
  paths = pathlib.Path(workdir, FOLDER).glob("[0-9]*")
  names = (path.name for path in paths if path.is_dir())
  return sorted((int(x) for x in names if x.isdecimal()), reverse=True)


def restore(workdir, abstract_state):
  """Restores the newest intact checkpoint; moves corrupt ones to `damaged/`.

  Returns the state, its step, and `lines` of `save`; or None, 0, None.
  """
  available = steps(workdir)
  hosts.assert_equal({"steps": available}, "checkpoints")
  for step in available:
    path = pathlib.Path(workdir, FOLDER, str(step)).absolute()
    try:
      with hosts.sync_errors():  # all processes read the same files
        state, about = load(path, abstract_state)
    except UserError as e:
      if step == available[-1]:
        raise UserError(f"{e}, and there is no earlier checkpoint") from e
      cli.log(f"warning: {e}; resuming from the one before")
      if hosts.is_primary():
        damaged = pathlib.Path(workdir, "damaged", path.name)
        damaged.parent.mkdir(exist_ok=True)
        files.remove(damaged)
        path.rename(damaged)
    else:
      warn_of_environment(about)
      return state, step, about["lines"]
  return None, 0, None


def warn_of_environment(saved):
  """Logs how the environment differs from a checkpoint's."""
  old, new = schema.flat(saved), schema.flat(environment())
  changes = [
    f"{key.removeprefix('versions.')} {new[key]} ({old.get(key)} before)"
    for key in new
    if old.get(key) != new[key]
  ]
  if changes:
    cli.log(
      f"warning: resuming with {', '.join(changes)}: results agree up to"
      " rounding, not bit by bit"
    )


def read(path):
  """Reads WORKDIR/checkpoints/STEP, or the newest intact one of WORKDIR.

  Returns the state as nested dicts of NumPy arrays, and the run's config.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise UserError(f"there is no checkpoint {path}: no such folder")
  available, workdir = steps(path), workdir_of(path)
  if not available and (path / "config.json").is_file():
    raise UserError(f"{path} holds no finished checkpoint")
  if workdir is None:
    raise UserError(
      f"{path} is neither a workdir nor a checkpoint (WORKDIR/{FOLDER}/STEP)"
    )
  config = schema.read_config(workdir)
  for step in available:
    try:
      return load(path / FOLDER / str(step))[0], config
    except UserError as e:
      if step == available[-1]:
        raise
      cli.log(f"warning: {e}; reading the one before")
  return load(path)[0], config


def load(path, abstract_state=None):
  """Reads and verifies one checkpoint of a run: its state and metadata."""
  state, about = read_tree(path, abstract_state)
  digest = about.pop("sha256", None)
  if digest_of(state, about) != digest:
    raise UserError(f"the checkpoint {path} is damaged: its SHA-256 differs")
  if abstract_state and isinstance(state, dict) and "center" in state:
    del state["center"]  # see `read_tree`
    state = abstract_state.replace(**state)
  return state, about


def workdir_of(path):
  """Returns the workdir of a workdir or checkpoint, or None."""
  path = pathlib.Path(path).absolute()
  if path.name.isdecimal() and path.parent.name == FOLDER:
    path = path.parent.parent
  elif not (path / FOLDER).is_dir():
    return None
  return path if (path / "config.json").is_file() else None


def is_tree(path):
  """True if a folder is an Orbax checkpoint."""
  names = ("_CHECKPOINT_METADATA", "_METADATA")
  return any(pathlib.Path(path, name).is_file() for name in names)


def read_tree(path, abstract_state=None):
  """Reads an Orbax checkpoint, by default as NumPy arrays, and its metadata."""
  path = pathlib.Path(path).absolute()
  if not is_tree(path):
    raise UserError(f"{path} is not an Orbax checkpoint, or is damaged")
  silence_failed_tasks()
  try:
    saved = ocp.metadata(path)
    # NumPy arrays can be restored on any devices.
    arrays = jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), saved.metadata
    )
    target = abstract_state or arrays
    if hasattr(target, "student") and not hasattr(target, "center"):
      # Masked autoencoders of version 0.2.0 saved a centre.
      unused = {k: arrays[k] for k in ("center",) if k in arrays}
      target = vars(target) | unused if unused else target
    return ocp.load(path, target), saved.custom_metadata or {}
  except AttributeError as e:
    raise UserError(f"{path} holds values that are not arrays") from e
  except Exception as e:  # Orbax and TensorStore raise any kind
    raise UserError(f"the checkpoint {path} is damaged: {short(e)}") from e


def silence_failed_tasks():
  """Hides what Orbax's tasks report after a load has failed."""

  def report(unraisable):
    late = "Event loop is closed" in str(unraisable.exc_value)
    if not (late or inspect.iscoroutine(unraisable.object)):
      sys.__unraisablehook__(unraisable)

  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  sys.unraisablehook = report


def write_tree(path, tree, metadata):
  """Writes nested dicts of arrays and JSON metadata as an Orbax checkpoint."""
  with files.atomic_write(pathlib.Path(path).absolute()) as temporary:
    ocp.save(temporary, tree, custom_metadata=metadata)


def digest_of(state, about):
  """SHA-256 of a state and its JSON metadata."""
  text = sha256(state) + json.dumps(about, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def sha256(state):
  """SHA-256 of a state's arrays, sorted by name; all processes must call it."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = {path_name(path): leaf for path, leaf in leaves}
  for name, leaf in sorted(named.items(), key=lambda item: item[0]):
    array = np.ascontiguousarray(hosts.replicated(leaf))
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    digest.update(array)
  return digest.hexdigest()


def path_name(path):
  """Formats a pytree path as "a/b/0"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
