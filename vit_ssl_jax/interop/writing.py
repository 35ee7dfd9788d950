"""Writes files of weights: safetensors, npz and PyTorch's, from NumPy arrays.

Each is written whole or not at all, over a file that is there, and its bytes
are those of its arrays and metadata alone: no time, no chance. `weights.read`
reads them all, metadata included.
"""

import contextlib
import hashlib
import json
import pathlib
import pickle
import struct
import zipfile

import numpy as np
from safetensors.numpy import save

from vit_ssl_jax import files
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.interop import pickles, weights

ALIGNMENT = 64  # bytes; where torch puts a storage, for those who map the file


def safetensors(path, arrays, metadata=None):
  """Writes a safetensors file.

  Arrays and metadata give the same bytes in any order. Metadata gets "format":
  "pt", for transformers 4 refuses metadata without it.

  Args:
    path: the file.
    arrays: name -> array (anything that NumPy reads) of `weights.TYPES`' types.
    metadata: name -> text, or None.

  Raises:
    UserError: the file cannot be written, or no arrays or others.
  """
  arrays = plain(path, arrays, weights.TYPES.values())
  if "__metadata__" in arrays:
    raise UserError(f"{path} cannot hold an array named __metadata__")
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
  arrays = plain(path, arrays, weights.TYPES.values())
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
  """Writes a state dict that `torch.load(path)` opens, without PyTorch.

  As `safetensors`, of arrays in their order and of types in
  `pickles.STORAGES`. The layout is that of `torch.save` in torch 2.

  Metadata, in JSON, is one more file in the zip, which PyTorch ignores.
  """
  arrays = plain(path, arrays, pickles.STORAGES.values())
  with opened(path) as file, zipfile.ZipFile(file, "w") as archive:
    put(archive, file, "data.pkl", state_dict(arrays))
    put(archive, file, "byteorder", b"little")
    for key, x in enumerate(arrays.values()):
      put(archive, file, f"data/{key}", x.tobytes())
    put(archive, file, "version", b"3\n")
    if metadata:
      put(archive, file, weights.METADATA, as_json(metadata))


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
    with files.placing(path) as temporary, temporary.open("wb") as file:
      yield file
  except OSError as error:
    raise UserError(
      f"{path} cannot be written: {error.strerror or error}"
    ) from error


def state_dict(arrays):
  """The pickle of a dict of tensors, whose storages are named 0, 1, ..."""
  names = {dtype: name for name, dtype in pickles.STORAGES.items()}
  opcodes = [b"\x80\x02}("]  # protocol 2, an empty dict, its items follow
  for key, (name, x) in enumerate(arrays.items()):
    strides = tuple(step // x.itemsize for step in np.empty_like(x).strides)
    opcodes += [
      pickled(name),
      b"ctorch._utils\n_rebuild_tensor_v2\n(",
      b"(" + pickled("storage"),
      b"c" + names[x.dtype].replace(".", "\n").encode() + b"\n",
      pickled(str(key)) + pickled("cpu") + pickled(x.size) + b"tQ",
      pickled(0) + pickled(x.shape) + pickled(strides) + pickled(False),
      b"ccollections\nOrderedDict\n)RtR",  # its hooks: none; the call
    ]
  return b"".join([*opcodes, b"u."])


def pickled(value):
  """The opcodes of a plain value: its pickle without beginning and end."""
  return pickle.dumps(value, protocol=2)[2:-1]


def put(archive, file, name, data):
  """Adds a file whose bytes begin at a multiple of ALIGNMENT."""
  info = zipfile.ZipInfo(f"archive/{name}")
  begin = file.tell() + 30 + len(info.filename) + 4  # the zip's own header
  padding = -begin % ALIGNMENT
  info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
  archive.writestr(info, data)


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
