"""Checkpoints with Orbax: asynchronous, atomic, the last few kept."""

import contextlib
import hashlib
import pathlib

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.run import schema

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
  with ocp.training.Checkpointer(
    pathlib.Path(workdir, FOLDER).absolute(),
    preservation_policy=policies.AnyPreservationPolicy(keep),
    cleanup_tmp_directories=True,
  ) as checkpointer:
    yield checkpointer


def save(checkpointer, step, state, val=None):
  """Starts writing a state in the background; it counts once it is whole.

  Args:
    checkpointer: of `manager`.
    step: the state's.
    state: a pytree of arrays.
    val: what validation has found, in percent, or None.
  """
  metrics = None if val is None else {"val": val}
  checkpointer.save_async(step, state, force=True, metrics=metrics)


def latest_step(checkpointer):
  """The newest whole checkpoint's step, or 0 where there is none."""
  return checkpointer.latest.step if checkpointer.latest else 0


def agreed_step(checkpointer):
  """`latest_step`, the same for all processes.

  Raises:
    UserError: on all processes, where one of them sees other checkpoints.
  """
  found = hosts.gather(latest_step(checkpointer))
  if len(set(found)) > 1:
    raise UserError(
      "the processes see different checkpoints: the newest are of the steps"
      f" {', '.join(map(str, found))}; all of them need the same --workdir"
    )
  return found[0]


def any_in(workdir):
  """Whether a workdir holds a whole checkpoint."""
  folder = pathlib.Path(workdir, FOLDER)
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def restore(checkpointer, abstract_state):
  """Reads the newest checkpoint into the shapes and shardings given."""
  return checkpointer.load(checkpointer.latest, abstract_state=abstract_state)


def read(path):
  """Reads a checkpoint as it was saved, and its run's config.

  Args:
    path: a workdir, of which the newest checkpoint is taken, or one of its
      checkpoints (`WORKDIR/checkpoints/STEP`).

  Returns:
    The state as nested dicts of NumPy arrays, and the config as a dict.

  Raises:
    UserError: there is no such folder, or no whole checkpoint in it.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise UserError(f"there is no checkpoint {path}: no such folder")
  if not any_in(path) and (path / "config.json").is_file():
    raise UserError(f"{path} holds no finished checkpoint")
  if any_in(path):
    steps = [p for p in (path / FOLDER).iterdir() if p.name.isdigit()]
    path = max(steps, key=lambda p: int(p.name))
  workdir = workdir_of(path)
  if workdir is None:
    raise UserError(
      f"{path} is neither a workdir nor one of its checkpoints"
      f" (WORKDIR/{FOLDER}/STEP)"
    )
  state, _ = read_tree(path)
  if "step" not in state:
    raise UserError(f"{path} is no checkpoint of a run: it has no step")
  return state, schema.read_config(workdir)


def workdir_of(path):
  """The folder of the run that a workdir or checkpoint is of, or None."""
  path = pathlib.Path(path).absolute()
  if (path / FOLDER).is_dir() and (path / "config.json").is_file():
    return path
  above = path.parent.parent
  among = path.name.isdigit() and path.parent.name == FOLDER
  return above if among and (above / "config.json").is_file() else None


def is_tree(path):
  """Whether a folder is a checkpoint of Orbax (what is above one is none)."""
  marks = ("_CHECKPOINT_METADATA", "_METADATA")
  return any(pathlib.Path(path, name).is_file() for name in marks)


def read_tree(path):
  """Reads any checkpoint of Orbax.

  Args:
    path: its folder.

  Returns:
    Nested dicts of NumPy arrays, as saved, and its custom metadata, a dict.

  Raises:
    UserError: it is no checkpoint of Orbax, or damaged.
  """
  path = pathlib.Path(path).absolute()
  if not is_tree(path):
    raise UserError(f"{path} is no checkpoint of Orbax")
  try:
    about = ocp.metadata(path)
    # Asking for NumPy arrays makes the devices it was saved from irrelevant.
    wanted = jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), about.metadata
    )
    return ocp.load(path, wanted), about.custom_metadata or {}
  except AttributeError as e:
    raise UserError(f"{path} holds something other than arrays") from e
  except (OSError, ValueError, KeyError) as e:
    why = " ".join(str(e).split())[:200]
    raise UserError(f"the checkpoint {path} is damaged: {why}") from e


def write_tree(path, tree, metadata):
  """Writes a checkpoint of Orbax, whole, in place of what is there.

  Args:
    path: its folder.
    tree: nested dicts of arrays.
    metadata: a dict that JSON can hold, its custom metadata.
  """
  with files.placing(pathlib.Path(path).absolute()) as temporary:
    ocp.save(temporary, tree, custom_metadata=metadata)


def sha256(state):
  """SHA-256 over the bytes of a state's arrays, in the order of their names.

  Of the whole state, wherever its parts lie; all processes have to ask.
  """
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(state)
  for path, leaf in sorted(leaves, key=lambda x: jax.tree_util.keystr(x[0])):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(hosts.replicated(leaf)).tobytes())
  return digest.hexdigest()
