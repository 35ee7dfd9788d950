"""Reads files of weights: safetensors, npz and PyTorch's, as NumPy arrays."""

import argparse
import collections
import dataclasses
import json
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from vit_ssl_jax.data import npz
from vit_ssl_jax.errors import UserError, line

# Where a PyTorch checkpoint keeps its weights, the first that is there.
ENTRIES = ("teacher", "student", "model_state_dict", "state_dict", "model")
METADATA = "metadata.json"  # what `writing.pth` puts into the zip
# Pretraining's projection head; a classifier is head.weight and head.bias.
PROJECTION = ("head.mlp.", "head.last_layer.")


@dataclasses.dataclass(frozen=True)
class Weights:
  """What `read` found in a file.

  Attributes:
    arrays: name -> array of numbers.
    metadata: text that the file says about itself, as `writing` has put it
      there; of a PyTorch checkpoint also the plain values beside its weights,
      such as "epoch" and "args.arch", but no paths.
    format: "safetensors", "npz" or "pth".
    entry: the entry of a checkpoint the arrays are from, such as "teacher", or
      "" where they are at the top.
    left_out: names, as in the file, of what is in it beside the arrays: other
      entries ("optimizer"), and what is no backbone's or no array.
  """

  arrays: dict[str, np.ndarray]
  metadata: dict[str, str]
  format: str
  entry: str = ""
  left_out: tuple[str, ...] = ()


def read(path):
  """Reads a file of weights; its bytes, not its name, tell the format.

  Of a PyTorch file, the weights may be at the top or in one of ENTRIES. Names
  lose "module." and "backbone." at their beginning, in any order and number,
  and what is not the backbone's is left out: all that is outside where some
  names have "backbone.", and a projection head. A safetensors file's names are
  read alike; those of an npz stay as they are ("a/b/c").

  Args:
    path: the file.

  Returns:
    Weights.

  Raises:
    UserError: no such file, none of these formats, truncated or broken, no
      arrays of weights in it, a pickle that holds more than data, or a PyTorch
      file where PyTorch is not installed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    what = "a folder" if path.is_dir() else "no such file"
    raise UserError(f"{path} cannot be read as weights: {what}")
  try:
    with path.open("rb") as file:
      start = file.read(16)
    if start[:2] == b"PK":
      with zipfile.ZipFile(path) as archive:
        names, metadata = archive.namelist(), zip_metadata(archive)
      if any(name.endswith("data.pkl") for name in names):
        return from_torch(path, metadata)
      if any(name.endswith(".npy") for name in names):
        return from_npz(path, metadata)
    elif start[8:9] == b"{":
      return from_safetensors(path)
    elif start[:1] == b"\x80":
      return from_torch(path, {})
  except UserError:
    raise
  except OSError as error:
    raise UserError(
      f"{path} cannot be read: {error.strerror or error}"
    ) from error
  except Exception as error:  # libraries raise many kinds for broken files
    raise UserError(f"{path} is truncated or broken: {line(error)}") from error
  begin = f"it begins with {start!r}" if start else "it is empty"
  raise UserError(f"{path} is no safetensors, npz or PyTorch file: {begin}")


def zip_metadata(archive):
  """What `writing` has put in a zip file about it: a member or the comment."""
  own = [x for x in archive.namelist() if x.split("/")[1:] == [METADATA]]
  text = archive.read(own[0]) if own else archive.comment
  return texts(json.loads(text)) if text.startswith(b"{") else {}


def texts(tree, prefix=""):
  """The plain values of a dict, as text."""
  return {
    f"{prefix}{name}": str(x)
    for name, x in tree.items()
    if isinstance(x, (str, int, float, np.number))
  }


def torch_module(what="files of PyTorch"):
  """PyTorch, which something needs.

  Raises:
    UserError: it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{what} need PyTorch, which is not installed: pip install"
      " 'vit-ssl-jax[torch]'"
    ) from error
  return torch


class OfNumpy:
  """Stands for NumPy's arrays and dtypes in a pickle, and only keeps the words.

  NumPy's own would trust what a pickle tells them of memory: a crafted dtype
  ends the process.
  """

  def __new__(cls, *args):
    self = super().__new__(cls)
    self.args, self.state = args, ()
    return self

  def __setstate__(self, state):
    self.state = state


def numpy_scalar(dtype, data):
  """A number as NumPy pickles it, or None."""
  code = dtype.args[0]
  if code in ("f2", "f4", "f8", "i4", "i8") and dtype.state[1] == "<":
    return np.frombuffer(data, code, 1)[0].item()
  return None


# What training scripts commonly put beside their weights.
MODULES = ("numpy._core.multiarray", "numpy.core.multiarray")
SAFE = [
  argparse.Namespace,
  *((OfNumpy, f"numpy.{name}") for name in ("dtype", "ndarray")),
  *((OfNumpy, f"{module}._reconstruct") for module in MODULES),
  *((numpy_scalar, f"{module}.scalar") for module in MODULES),
]


def load_torch(path):
  """What a PyTorch file holds; only data is unpickled, nothing is called."""
  torch = torch_module()
  try:
    with torch.serialization.safe_globals(SAFE):
      return torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    found = str(error)
    if "Unsupported" not in found and "was not an allowed" not in found:
      raise  # it is broken
    name = found.partition("GLOBAL ")[2].split(" ")[0]
    raise UserError(
      f"{path} holds {name or 'something'}, which is no data: only tensors and"
      " plain values are read, and nothing is executed"
    ) from error


def from_torch(path, metadata):
  """The Weights in PyTorch's file: a state dict, or a checkpoint with one."""
  tree = load_torch(path)
  tree = tree if isinstance(tree, dict) else {}
  entry = next((x for x in ENTRIES if any_tensor(tree.get(x))), "")
  state = tree[entry] if entry else tree
  values = texts(tree)
  if isinstance(tree.get("args"), argparse.Namespace):
    values |= texts(vars(tree["args"]), "args.")
  # Metadata may be shown: paths would tell of the user and the machine of what
  # somebody has trained.
  values = {k: x for k, x in values.items() if not set(x) & {"/", "\\"}}
  arrays = {
    name: as_numpy(x) for name, x in state.items() if isinstance(name, str)
  }
  kept = backbone(path, [name for name, x in arrays.items() if is_weight(x)])
  others = [str(x) for x in tree if entry and x != entry]
  place = f"{entry}." if entry else ""
  others += [f"{place}{name}" for name in state if name not in kept]
  left_out = tuple(name for name in others if name not in values)
  arrays = {bare: arrays[name] for name, bare in kept.items()}
  return Weights(arrays, values | metadata, "pth", entry, left_out)


def any_tensor(tree):
  return isinstance(tree, dict) and any(
    is_weight(as_numpy(x)) for x in tree.values()
  )


def as_numpy(x):
  """A tensor as NumPy's array; anything else as it is."""
  torch = torch_module()
  if not isinstance(x, torch.Tensor):
    return x
  if x.dtype == torch.bfloat16:
    return x.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return x.detach().numpy()


def is_weight(x):
  """Whether something is an array of numbers."""
  if not isinstance(x, np.ndarray):
    return False
  return x.dtype.kind in "biuf" or x.dtype == ml_dtypes.bfloat16


def backbone(path, names):
  """Chooses a backbone's arrays and strips their names' prefixes.

  Args:
    path: the file, for messages.
    names: its arrays' names.

  Returns:
    Those to keep: name -> what to call it.
  """
  found = {name: strip(name) for name in names}
  marked = any("backbone" in prefixes for _, prefixes in found.values())
  kept = {
    name: bare
    for name, (bare, prefixes) in found.items()
    if ("backbone" in prefixes or not marked)
    and not bare.startswith(PROJECTION)
  }
  if not kept:
    raise UserError(f"{path} holds no arrays of a backbone's weights")
  twice, count = collections.Counter(kept.values()).most_common(1)[0]
  if count > 1:
    raise UserError(
      f"{path} holds {twice} more than once, with and without module. or"
      " backbone. before it"
    )
  return kept


def strip(name):
  """A name without module. and backbone. before it, and what those were."""
  prefixes = []
  while name.startswith(("module.", "backbone.")):
    prefix, name = name.split(".", 1)
    prefixes.append(prefix)
  return name, prefixes


def from_npz(path, metadata):
  """The Weights of an npz; bfloat16, for NumPy two bytes, is recognised."""
  with np.load(path, allow_pickle=False) as file:
    for name in file.files:
      npz.header(file, name)  # sizes, before anything is read
    stored = {name: file[name] for name in file.files}
  arrays = {
    name: x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x
    for name, x in stored.items()
  }
  kept = {name: x for name, x in arrays.items() if is_weight(x)}
  if not kept:
    raise UserError(f"{path} holds no arrays of weights")
  left_out = tuple(name for name in arrays if name not in kept)
  return Weights(kept, metadata, "npz", left_out=left_out)


def from_safetensors(path):
  """The Weights of a safetensors file; what is left out is not even read."""
  with safetensors.safe_open(path, "np") as file:
    names = file.keys()
    kept = backbone(path, names)
    arrays = {bare: file.get_tensor(name) for name, bare in kept.items()}
    metadata = dict(sorted((file.metadata() or {}).items()))
  left_out = tuple(name for name in names if name not in kept)
  return Weights(arrays, metadata, "safetensors", left_out=left_out)
