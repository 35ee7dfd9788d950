"""Checkpoints with Orbax: asynchronous, atomic, verified, the last few kept."""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
import time
from importlib import metadata

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError, line
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.recipes import schema

FOLDER = "checkpoints"


@contextlib.contextmanager
def manager(workdir, keep_last, keep_every_steps):
  """Opens a workdir's checkpoints for a training run.

  Args:
    workdir: the run's folder; checkpoints are its `checkpoints/STEP`.
    keep_last: how many of the newest are kept.
    keep_every_steps: those at multiples of this are kept too; 0 for none. So
      is the best one of those that were saved with a validation figure.

  Yields:
    A Checkpointer; leaving the context waits for what is being written.

  Raises:
    UserError: they could not be written.
  """
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
  with writing(folder):
    checkpointer = ocp.training.Checkpointer(
      folder,
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
  try:
    yield checkpointer
  finally:
    try:
      with writing(folder):
        checkpointer.close()
    finally:
      if hosts.is_primary():
        remove_incomplete(folder)


def remove_incomplete(folder):
  """Removes what was written in part, to which late tasks may still add."""
  for _ in range(20):
    parts = list(folder.glob("*.orbax-checkpoint-tmp*"))
    for part in parts:
      shutil.rmtree(part, ignore_errors=True)
    if not parts:
      return
    time.sleep(0.1)


@contextlib.contextmanager
def writing(folder):
  """Turns what goes wrong in writing checkpoints into one sentence.

  Of several processes one may be alone with it, and has to leave the others.
  """
  try:
    yield
  except Exception as e:  # whatever Orbax and TensorStore raise
    if not hosts.single_process():
      raise
    raise UserError(
      f"a checkpoint could not be written to {folder} ({short(e)}): those"
      " before it are whole, and the same command goes on from there once that"
      " is mended"
    ) from e


def short(error):
  """An error's text as the end of a line."""
  text = " ".join(str(error).split())  # whole: the reason may come late
  reason = re.search(
    r"No space left on device|File too large|Read-only file"
    r" system|Permission denied|Disk quota exceeded",
    text,
  )
  return reason[0] if reason else line(error)


def save(checkpointer, step, state, val=None, lines=None):
  """Starts writing a state in the background; it counts once it is whole.

  With it goes what it was computed with, and a SHA-256 of all, by which
  `restore` and `read` know whether it still is what was saved.

  Args:
    checkpointer: of `manager`.
    step: the state's.
    state: a pytree of arrays.
    val: what validation has found, in percent, or None.
    lines: a SHA-256 of the lines of metrics until then, or None.

  Raises:
    UserError: it, or the one before, could not be written.
  """
  metrics = None if val is None else {"val": val}
  about = {"lines": lines} | environment()
  about["sha256"] = digest_of(state, about)
  with writing(pathlib.Path(checkpointer.directory)):
    checkpointer.save_async(
      step, state, force=True, metrics=metrics, custom_metadata=about
    )


def environment():
  """What the bits of a state depend on beside config and seed."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  return {
    "devices": sorted({str(d.device_kind) for d in jax.devices()}),
    "versions": {name: metadata.version(name) for name in packages},
  }


def steps(workdir):
  """The steps of a workdir's checkpoints, the newest first."""
  folder = pathlib.Path(workdir, FOLDER)
  if not folder.is_dir():
    return []
  names = (p.name for p in folder.iterdir() if p.is_dir())
  return sorted((int(x) for x in names if x.isdecimal()), reverse=True)


def agreed_steps(workdir):
  """`steps`, the same for all processes.

  Raises:
    UserError: on all processes, where one of them sees other checkpoints.
  """
  first, *others = found = hosts.all_gather(steps(workdir))
  if any(x != first for x in others):
    newest = ", ".join(str(max(x, default=0)) for x in found)
    raise UserError(
      "the processes see different checkpoints: the newest are of the steps"
      f" {newest}; all of them need the same --workdir"
    )
  return first


def restore(workdir, abstract_state):
  """Reads the newest whole checkpoint into the shapes and shardings given.

  Damaged ones that are newer are moved to the workdir's folder `damaged`, so
  that the run can write them anew.

  Args:
    workdir: the run's folder.
    abstract_state: a pytree of ShapeDtypeStruct with shardings.

  Returns:
    The state, its step, and the `lines` that it was saved with; None, 0 and
    None where there are no checkpoints.

  Raises:
    UserError: there are some, and all of them are damaged; or processes see
      different ones.
  """
  found = agreed_steps(workdir)
  for step in found:
    path = pathlib.Path(workdir, FOLDER, str(step)).absolute()
    try:
      # All read the same files, and so wait for each other or fail alike.
      with hosts.sync_errors():
        state, about = load(path, abstract_state)
    except UserError as e:
      if step == found[-1]:
        raise UserError(f"{e}; there is none before it to go on from") from e
      cli.log(f"warning: {e}; going on from the one before")
      if hosts.is_primary():
        quarantine(path, pathlib.Path(workdir, "damaged"))
      continue
    warn_of_environment(about)
    return state, step, about["lines"]
  return None, 0, None


def quarantine(path, folder):
  """Moves a checkpoint to a folder."""
  folder.mkdir(exist_ok=True)
  files.remove(folder / path.name)
  path.rename(folder / path.name)


def warn_of_environment(about):
  """Says what differs from the environment that a checkpoint was saved in."""
  now = environment()
  differ = [
    f"{name} {version} ({about['versions'].get(name)} before)"
    for name, version in now["versions"].items()
    if about["versions"].get(name) != version
  ]
  if about["devices"] != now["devices"]:
    before = ", ".join(about["devices"])
    differ.append(f"{', '.join(now['devices'])} ({before} before)")
  if differ:
    cli.log(
      f"warning: resuming with {', '.join(differ)}: the numbers are the same to"
      " rounding, not to the last bit"
    )


def read(path):
  """Reads a checkpoint as it was saved, and its run's config.

  Args:
    path: a workdir, of which the newest whole checkpoint is taken, or one of
      its checkpoints (`WORKDIR/checkpoints/STEP`).

  Returns:
    The state as nested dicts of NumPy arrays, and the config as a dict.

  Raises:
    UserError: there is no such folder, or no whole checkpoint in it.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise UserError(f"there is no checkpoint {path}: no such folder")
  found = steps(path)
  if not found and (path / "config.json").is_file():
    raise UserError(f"{path} holds no finished checkpoint")
  workdir = workdir_of(path)
  if workdir is None:
    raise UserError(
      f"{path} is neither a workdir nor one of its checkpoints"
      f" (WORKDIR/{FOLDER}/STEP)"
    )
  config = schema.read_config(workdir)
  for step in found:
    try:
      return load(path / FOLDER / str(step))[0], config
    except UserError as e:
      if step == found[-1]:
        raise
      cli.log(f"warning: {e}; taking the one before")
  return load(path)[0], config


def load(path, abstract_state=None):
  """Reads one checkpoint of a run, and makes sure that it is what was saved.

  Args:
    path: `WORKDIR/checkpoints/STEP`.
    abstract_state: of `restore`; without one the state is nested dicts of NumPy
      arrays.

  Returns:
    The state, and what was saved with it, of `environment`.

  Raises:
    UserError: it is damaged.
  """
  state, about = read_tree(path, abstract_state)
  digest = about.pop("sha256", None)
  if digest_of(state, about) != digest:
    raise UserError(
      f"the checkpoint {path} is damaged: it is not what was saved"
    )
  return state, about


def workdir_of(path):
  """The folder of the run that a workdir or checkpoint is of, or None."""
  path = pathlib.Path(path).absolute()
  if (path / FOLDER).is_dir() and (path / "config.json").is_file():
    return path
  above = path.parent.parent
  among = path.name.isdecimal() and path.parent.name == FOLDER
  return above if among and (above / "config.json").is_file() else None


def is_tree(path):
  """Whether a folder is a checkpoint of Orbax (what is above one is none)."""
  marks = ("_CHECKPOINT_METADATA", "_METADATA")
  return any(pathlib.Path(path, name).is_file() for name in marks)


def read_tree(path, abstract_state=None):
  """Reads any checkpoint of Orbax.

  Args:
    path: its folder.
    abstract_state: of `restore`, or None.

  Returns:
    The state, or else nested dicts of NumPy arrays, as saved; and its custom
    metadata, a dict.

  Raises:
    UserError: it is no checkpoint of Orbax, or damaged.
  """
  path = pathlib.Path(path).absolute()
  if not is_tree(path):
    raise UserError(f"{path} is no checkpoint of Orbax, or a damaged one")
  try:
    about = ocp.metadata(path)
    # Asking for NumPy arrays makes the devices it was saved from irrelevant.
    wanted = abstract_state or jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), about.metadata
    )
    return ocp.load(path, wanted), about.custom_metadata or {}
  except AttributeError as e:
    raise UserError(f"{path} holds something other than arrays") from e
  except Exception as e:  # whatever Orbax and TensorStore raise
    raise UserError(f"the checkpoint {path} is damaged: {short(e)}") from e


def write_tree(path, tree, metadata):
  """Writes a checkpoint of Orbax, whole, in place of what is there.

  Args:
    path: its folder.
    tree: nested dicts of arrays.
    metadata: a dict that JSON can hold, its custom metadata.
  """
  with files.atomic_write(pathlib.Path(path).absolute()) as temporary:
    ocp.save(temporary, tree, custom_metadata=metadata)


def digest_of(state, about):
  """SHA-256 over a state's and over what is saved with it, a dict."""
  text = sha256(state) + json.dumps(about, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def sha256(state):
  """SHA-256 over the bytes of a state's arrays, in the order of their names.

  Of the whole state, wherever its parts lie; all processes have to ask. It is
  the same for a state as saved and as read in nested dicts.
  """
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = [(path_name(path), leaf) for path, leaf in leaves]
  for key, leaf in sorted(named, key=lambda x: x[0]):
    array = np.ascontiguousarray(hosts.replicated(leaf))
    digest.update(f"{key} {array.dtype} {array.shape}".encode())
    digest.update(array)
  return digest.hexdigest()


def path_name(path):
  """A path of JAX's as "a/b/0", whatever the containers on it are."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
