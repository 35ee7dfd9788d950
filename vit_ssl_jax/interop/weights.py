"""Files of weights: safetensors, npz and PyTorch's, as plain NumPy arrays."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import pickles

# https://github.com/huggingface/safetensors#format
SAFETENSORS = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "F32": np.dtype(np.float32),
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F64": np.dtype(np.float64),
}
# Where a PyTorch checkpoint keeps its weights, the first that is there.
ENTRIES = ("teacher", "student", "model_state_dict", "state_dict", "model")
# Pretraining's projection head; a classifier is head.weight and head.bias.
PROJECTION = ("head.mlp.", "head.last_layer.")


@dataclasses.dataclass(frozen=True)
class Weights:
  """What `read` found in a file.

  Attributes:
    arrays: name -> array, of SAFETENSORS' types; maybe read-only.
    metadata: text that the file says about itself; of a PyTorch checkpoint the
      plain values beside its weights, such as "epoch" and "args.arch".
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
      arrays of weights in it, or a pickle that would execute something.
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
        names = archive.namelist()
      if any(name.endswith(pickles.PICKLE) for name in names):
        return from_pickle(path)
      if any(name.endswith(".npy") for name in names):
        return from_npz(path)
    elif start[8:9] == b"{":
      return from_safetensors(path)
    elif start[:1] == b"\x80":
      return from_pickle(path)
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  except Exception as error:  # libraries raise many kinds for broken files
    raise pickles.broken(path, error) from error
  begin = f"it begins with {start!r}" if start else "it is empty"
  raise UserError(f"{path} is no safetensors, npz or PyTorch file: {begin}")


def from_pickle(path):
  """The Weights in PyTorch's file: a state dict, or a checkpoint with one."""
  tree = pickles.read(path)
  tree = tree if isinstance(tree, dict) else {}
  entry = next((x for x in ENTRIES if any_array(tree.get(x))), "")
  state = tree[entry] if entry else tree
  metadata = texts(tree)
  if isinstance(tree.get("args"), dict):
    metadata |= texts(tree["args"], "args.")
  others = [str(x) for x in tree if entry and x != entry]
  arrays, left_out = backbone(path, state, f"{entry}." if entry else "")
  left_out = tuple(x for x in [*others, *left_out] if x not in metadata)
  return Weights(arrays, metadata, "pth", entry, left_out)


def texts(tree, prefix=""):
  """The plain values of a dict, as text."""
  return {
    f"{prefix}{name}": str(x)
    for name, x in tree.items()
    if isinstance(x, (str, int, float, np.number))
  }


def any_array(tree):
  return isinstance(tree, dict) and any(
    isinstance(x, np.ndarray) for x in tree.values()
  )


def backbone(path, state, place=""):
  """Chooses a backbone's arrays and strips their names' prefixes.

  Args:
    path: the file, for messages.
    state: name -> array or anything else.
    place: where in the file that is, for the names of what is left out.

  Returns:
    The arrays, and the names of what is left out.
  """
  found = {name: strip(name) for name, x in state.items() if is_weight(name, x)}
  marked = any("backbone" in prefixes for _, prefixes in found.values())
  kept = {
    name: bare
    for name, (bare, prefixes) in found.items()
    if ("backbone" in prefixes or not marked)
    and not bare.startswith(PROJECTION)
  }
  if not kept:
    raise UserError(f"{path} holds no arrays of a backbone's weights")
  arrays = {bare: state[name] for name, bare in kept.items()}
  if len(arrays) < len(kept):
    twice, _ = collections.Counter(kept.values()).most_common(1)[0]
    raise UserError(
      f"{path} holds {twice} more than once, with and without module. or"
      " backbone. before it"
    )
  return arrays, [f"{place}{name}" for name in state if name not in kept]


def is_weight(name, x):
  known = isinstance(x, np.ndarray) and x.dtype in SAFETENSORS.values()
  return known and isinstance(name, str)


def strip(name):
  """A name without module. and backbone. before it, and what those were."""
  prefixes = []
  while name.startswith(("module.", "backbone.")):
    prefix, name = name.split(".", 1)
    prefixes.append(prefix)
  return name, prefixes


def from_npz(path):
  """The Weights of an npz; bfloat16, for NumPy two bytes, is recognised."""
  with np.load(path, allow_pickle=False) as file:
    stored = {name: file[name] for name in file.files}
    text = file.zip.comment
  arrays = {
    name: x.view(ml_dtypes.bfloat16) if getattr(x, "dtype", None) == "V2" else x
    for name, x in stored.items()
  }
  kept = {name: x for name, x in arrays.items() if is_weight(name, x)}
  if not kept:
    raise UserError(f"{path} holds no arrays of weights")
  metadata = texts(json.loads(text)) if text.startswith(b"{") else {}
  left_out = tuple(name for name in arrays if name not in kept)
  return Weights(kept, metadata, "npz", left_out=left_out)


def from_safetensors(path):
  """The Weights of a safetensors file."""
  data = path.read_bytes()
  (size,) = struct.unpack_from("<Q", data)
  if size > len(data) - 8:
    raise ValueError("its header ends after the file")
  header = json.loads(data[8 : 8 + size])
  metadata = texts(header.pop("__metadata__", {}))
  state, end = {}, 8 + size
  for name, tensor in sorted(
    header.items(), key=lambda item: item[1]["data_offsets"]
  ):
    if tensor["dtype"] not in SAFETENSORS:
      raise UserError(
        f"{path} holds {name} of type {tensor['dtype']}: possible are "
        + ", ".join(SAFETENSORS)
      )
    dtype, shape = SAFETENSORS[tensor["dtype"]], tensor["shape"]
    begin, end = end, 8 + size + tensor["data_offsets"][1]
    length = math.prod(shape) * dtype.itemsize
    if tensor["data_offsets"][0] + 8 + size != begin or end - begin != length:
      raise ValueError(f"{name} is not where its shape has it")
    if end > len(data):
      raise ValueError(f"{name} ends after the file")
    flat = np.frombuffer(data, dtype, math.prod(shape), begin) if length else []
    state[name] = np.asarray(flat, dtype).reshape(shape)
  if end != len(data):
    raise ValueError("the file goes on after its last array")
  arrays, left_out = backbone(path, state)
  return Weights(arrays, metadata, "safetensors", left_out=tuple(left_out))


def write_safetensors(path, arrays, metadata=None, *, overwrite=False):
  """Writes a safetensors file, whole or not at all.

  The same arrays and metadata give the same bytes, whatever their order.

  Args:
    path: the file.
    arrays: name -> array (anything that NumPy reads) of SAFETENSORS' types.
    metadata: name -> text, or None.
    overwrite: whether a file that is there may be replaced.

  Returns:
    The file's SHA-256, in hexadecimal.

  Raises:
    UserError: the file exists or cannot be written, or no or other arrays.
  """
  arrays = plain(path, arrays, SAFETENSORS.values())
  types = {dtype: name for name, dtype in SAFETENSORS.items()}
  # The largest items first: each array then begins at a multiple of its own.
  order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
  header = {"__metadata__": metadata} if metadata else {}
  end = 0
  for name in order:
    x = arrays[name]
    begin, end = end, end + x.nbytes
    header[name] = {"dtype": types[x.dtype], "shape": x.shape}
    header[name]["data_offsets"] = [begin, end]
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)

  def put(file):
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
      file.write(arrays[name].tobytes())

  return place(path, overwrite, put)


def write_npz(path, arrays, metadata=None, *, overwrite=False):
  """Writes an npz, whole or not at all, as `write_safetensors` does.

  Metadata is the zip file's comment, in JSON, which other readers ignore.
  """
  arrays = plain(path, arrays, SAFETENSORS.values())
  comment = json.dumps(metadata).encode() if metadata else b""
  if len(comment) > zipfile.ZIP_MAX_COMMENT:
    raise UserError(f"{path} cannot hold metadata of {len(comment)} bytes")

  def put(file):
    with zipfile.ZipFile(file, "w") as archive:
      archive.comment = comment
      for name, x in arrays.items():
        # A ZipInfo of its own carries no time of writing.
        info = zipfile.ZipInfo(f"{name}.npy")
        with archive.open(info, "w", force_zip64=True) as member:
          np.lib.format.write_array(member, x, allow_pickle=False)

  return place(path, overwrite, put)


def write_pth(path, arrays, *, overwrite=False):
  """Writes a state dict that `torch.load(path)` opens, without PyTorch.

  As `write_safetensors`, without metadata; the types are `pickles.STORAGES`'.
  """
  arrays = plain(path, arrays, pickles.STORAGES.values())
  return place(path, overwrite, lambda file: pickles.write(file, arrays))


def plain(path, arrays, dtypes):
  """Arrays as NumPy's, contiguous and little-endian, of these types."""
  if not arrays:
    raise UserError(f"{path} would hold no arrays")
  made = {}
  for name, x in arrays.items():
    x = np.asarray(x, order="C")
    x = made[name] = x.astype(x.dtype.newbyteorder("<"), copy=False)
    if x.dtype not in dtypes:
      raise UserError(f"{path} cannot hold {name}: its type is {x.dtype}")
  return made


def place(path, overwrite, put):
  """Writes a file beside its place, moves it there, and gives its SHA-256."""
  path = pathlib.Path(path)
  if path.is_dir() or (path.exists() and not overwrite):
    raise UserError(f"{path} exists already: it is left as it is")
  # Of this process alone: another may be writing the same file.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("w+b") as file:
      put(file)
      file.seek(0)
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(temporary, path)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror}") from error
  finally:
    temporary.unlink(missing_ok=True)
  return digest
