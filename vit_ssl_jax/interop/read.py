"""Reads weights files: safetensors, npz and PyTorch's, as NumPy arrays."""

import argparse
import collections
import dataclasses
import json
import pathlib
import pickle
import zipfile

import numpy as np
import safetensors

from vit_ssl_jax.errors import UserError, line

# Entries of a PyTorch checkpoint that may hold its weights; the first wins.
ENTRIES = ("teacher", "student", "model_state_dict", "state_dict", "model")
# Pretraining's projection head; a classifier is head.weight and head.bias.
PROJECTION = ("head.mlp.", "head.last_layer.")
# Member of a .pth of version 0.2.0, which kept its metadata there.
METADATA = "archive/metadata.json"


@dataclasses.dataclass(frozen=True)
class File:
  """The content of a weights file."""

  arrays: dict[str, np.ndarray]
  metadata: dict[str, str]
  left_out: tuple[str, ...] = ()  # names of everything else in it


def read_file(path):
  """Reads a weights file, whose bytes, not its name, tell the format.

  Names lose leading "module." and "backbone." (except an npz file's), and
  anything outside of a backbone, such as a projection head, is left out.
  """
  path = pathlib.Path(path)
  try:
    with path.open("rb") as file:
      start = file.read(16)
    if start[:2] == b"PK":
      return read_zip(path)
    if start[8:9] == b"{":
      return read_safetensors(path)
    if start[:1] == b"\x80":  # PyTorch's format before 1.6
      return read_pth(path, {})
  except UserError:
    raise
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
  except Exception as e:  # each library raises kinds of its own
    raise UserError(f"{path} is truncated or damaged: {line(e)}") from e
  begin = f"it begins with {start!r}" if start else "it is empty"
  raise UserError(f"{path} is no safetensors, npz or PyTorch file: {begin}")


def read_zip(path):
  """Reads an npz or a PyTorch file, which both are zip files."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    old = METADATA in names
    text = archive.read(METADATA) if old else archive.comment
  metadata = json.loads(text) if text.startswith(b"{") else {}
  if any(name.endswith("data.pkl") for name in names):
    return read_pth(path, metadata)
  return read_npz(path, metadata)


def read_npz(path, metadata):
  """Reads an npz file without pickles."""
  with np.load(path, allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  weights = {name: x for name, x in arrays.items() if is_weight(x)}
  if not weights:
    raise UserError(f"{path} holds no arrays of weights")
  left_out = tuple(name for name in arrays if name not in weights)
  return File(weights, metadata, left_out)


def read_safetensors(path):
  """Reads a safetensors file, without what is left out."""
  with safetensors.safe_open(path, "np") as file:
    names = file.keys()
    renamed = backbone(path, names)
    arrays = {new: file.get_tensor(name) for name, new in renamed.items()}
    metadata = file.metadata() or {}
  left_out = tuple(name for name in names if name not in renamed)
  return File(arrays, metadata, left_out)


def read_pth(path, metadata):
  """Reads a PyTorch state dict, or a checkpoint that has one."""
  tree = load_pth(path)
  tree = tree if isinstance(tree, dict) else {}
  entry = next((x for x in ENTRIES if isinstance(tree.get(x), dict)), None)
  state = tree[entry] if entry else tree
  arrays = {name: as_numpy(x) for name, x in state.items()}
  arrays = {name: x for name, x in arrays.items() if is_weight(x)}
  renamed = backbone(path, arrays)
  others = [x for x in tree if entry and x != entry and not is_plain(tree[x])]
  others += [
    f"{entry}.{name}" if entry else str(name)
    for name, x in state.items()
    if name not in renamed and not is_plain(x)
  ]
  arrays = {new: arrays[name] for name, new in renamed.items()}
  metadata = getattr(state, "metadata", metadata)
  return File(arrays, metadata, tuple(map(str, others)))


def load_pth(path):
  """Loads a PyTorch file; whatever is not data is refused."""
  torch = import_torch(path)
  try:
    with torch.serialization.safe_globals(plain_globals()):
      return torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as e:
    if "GLOBAL " not in str(e) and "Unsupported" not in str(e):
      raise  # damaged
    name = str(e).partition("GLOBAL ")[2].split(" ")[0]
    raise UserError(
      f"{path} holds {name or 'an object'}, which is no data: only tensors and"
      " plain values are read, and nothing is executed"
    ) from e


def plain_globals():
  """Types of the plain values that training scripts store beside weights."""
  types = [argparse.Namespace, np.dtype, np.ndarray]
  types += {type(np.dtype(code)) for code in "efdbhilqBHILQ?"}
  for name in ("scalar", "_reconstruct"):
    function = getattr(np._core.multiarray, name)
    types += [function, (function, f"numpy.core.multiarray.{name}")]
  return types


def import_torch(purpose):
  """Imports PyTorch, an optional dependency, which `purpose` needs."""
  try:
    import torch
  except ImportError as e:
    raise UserError(
      f"{purpose} needs PyTorch, which is not installed: pip install"
      " 'vit-ssl-jax[torch]'"
    ) from e
  return torch


def as_numpy(x):
  """Converts a tensor to NumPy, bfloat16 to float32; passes on the rest."""
  if not hasattr(x, "detach"):
    return x
  x = x.detach()
  return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()


def is_weight(x):
  """True if `x` is an array of numbers."""
  return isinstance(x, np.ndarray) and x.dtype.kind in "biuf"


def is_plain(x):
  return isinstance(x, str | int | float)


def backbone(path, names):
  """Selects the names of a backbone's arrays: name -> name without prefixes."""
  names = [name for name in names if isinstance(name, str)]
  split = {name: strip(name) for name in names}
  marked = any("backbone" in prefixes for prefixes, _ in split.values())
  renamed = {
    name: new
    for name, (prefixes, new) in split.items()
    if ("backbone" in prefixes or not marked) and not new.startswith(PROJECTION)
  }
  if not renamed:
    raise UserError(f"{path} holds no arrays of a backbone's weights")
  name, count = collections.Counter(renamed.values()).most_common(1)[0]
  if count > 1:
    raise UserError(
      f"{path} holds {name} more than once, with and without module. or"
      " backbone. before it"
    )
  return renamed


def strip(name):
  """ "module.a.b" -> (["module"], "a.b")."""
  prefixes = []
  while name.startswith(("module.", "backbone.")):
    prefix, name = name.split(".", 1)
    prefixes.append(prefix)
  return prefixes, name
