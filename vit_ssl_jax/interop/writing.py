"""Writes files of weights: safetensors, npz and PyTorch's, from NumPy arrays.

Each is written whole or not at all, over a file that is there, and its bytes
are those of its arrays and metadata alone: no time, no chance. `weights.read`
reads them all, metadata included.
"""

import contextlib
import hashlib
import json
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import weights


def safetensors(path, arrays, metadata=None):
  """Writes a safetensors file.

  Arrays and metadata give the same bytes in any order. Metadata gets "format":
  "pt", for transformers 4 refuses metadata without it.

  Args:
    path: the file.
    arrays: name -> array of numbers (anything that NumPy reads).
    metadata: name -> text, or None.

  Raises:
    UserError: the file cannot be written, or no arrays or others.
  """
  arrays = plain(path, arrays)
  metadata = (metadata or {}) | {"format": "pt"}
  data = memoryview(save(arrays, metadata))
  (size,) = struct.unpack_from("<Q", data)
  header = json.loads(bytes(data[8 : 8 + size]))
  # The library shuffles them: in a hash map of Rust, no two runs agree.
  header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)  # arrays begin at a multiple of their items
  with opened(path) as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.write(data[8 + size :])


def npz(path, arrays, metadata=None):
  """Writes an npz, as `safetensors` does, of arrays in their order.

  Metadata, in JSON, is the zip file's comment, which other readers ignore.
  """
  arrays = plain(path, arrays)
  comment = as_json(metadata)
  if len(comment) > zipfile.ZIP_MAX_COMMENT:
    raise UserError(
      f"{path} cannot hold metadata of {len(comment)} bytes: possible are"
      f" {zipfile.ZIP_MAX_COMMENT}"
    )
  with opened(path) as file, zipfile.ZipFile(file, "w") as archive:
    archive.comment = comment
    for name, x in arrays.items():
      # A ZipInfo of its own carries no time of writing.
      info = zipfile.ZipInfo(f"{name}.npy")
      with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, x, allow_pickle=False)


def pth(path, arrays, metadata=None):
  """Writes a state dict by `torch.save`; the rest is as in `npz`.

  Metadata, in JSON, is one more file in the zip, which PyTorch ignores.

  Raises:
    UserError: as of `safetensors`, or PyTorch is not installed.
  """
  torch = weights.torch_module()
  state = {}
  for name, x in plain(path, arrays).items():
    if x.dtype == ml_dtypes.bfloat16:
      state[name] = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    else:
      state[name] = torch.from_numpy(x)
  with opened(path) as file:
    torch.save(state, file)
    if metadata:
      with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo(f"archive/{weights.METADATA}")
        archive.writestr(info, as_json(metadata))


def plain(path, arrays):
  """Arrays as NumPy's, contiguous, little-endian, of numbers, and writable."""
  if not arrays:
    raise UserError(f"{path} would hold no arrays")
  made = {}
  for name, x in arrays.items():
    x = np.array(x, order="C")
    made[name] = x.astype(x.dtype.newbyteorder("<"), copy=False)
    if not weights.is_weight(x):
      raise UserError(f"{path} cannot hold {name}: its type is {x.dtype}")
  return made


def as_json(metadata):
  text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
  return text.encode() if metadata else b""


@contextlib.contextmanager
def opened(path):
  """Yields a new binary file, which is moved to `path` once it is whole."""
  path = pathlib.Path(path)
  try:
    if path.is_dir():  # `placing` would put the file in place of all of it
      raise UserError(f"{path} cannot be written: it is a folder")
    with files.atomic_write(path) as temporary, temporary.open("w+b") as file:
      yield file
  except OSError as error:
    raise UserError(
      f"{path} cannot be written: {error.strerror or error}"
    ) from error


def sha256(path):
  """The SHA-256 of a file, in hexadecimal.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with pathlib.Path(path).open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
