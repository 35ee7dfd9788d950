"""Writes weights files: safetensors, npz and PyTorch's, whole or not at all."""

import collections
import hashlib
import json
import pathlib
import zipfile

import numpy as np
import safetensors.numpy

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import read


def write_safetensors(path, arrays, metadata):
  """Writes a safetensors file of contiguous arrays, and text as metadata."""
  # transformers 4 refuses metadata without a format.
  data = safetensors.numpy.save(arrays, metadata | {"format": "pt"})
  with files.atomic_write(path) as temporary:
    temporary.write_bytes(data)


def write_npz(path, arrays, metadata):
  """Writes an npz file, with the metadata as JSON in the zip's comment."""
  comment = json.dumps(metadata, ensure_ascii=False).encode()
  if len(comment) > zipfile.ZIP_MAX_COMMENT:
    raise UserError(
      f"{path} cannot hold {len(comment)} bytes of metadata: an npz file has"
      f" room for {zipfile.ZIP_MAX_COMMENT}"
    )
  with files.atomic_write(path) as temporary:
    with temporary.open("wb") as file:  # a path would get the suffix .npz
      np.savez(file, **arrays)
    with zipfile.ZipFile(temporary, "a") as archive:
      archive.comment = comment


def write_pth(path, arrays, metadata):
  """Writes a PyTorch state dict, with an attribute `metadata`."""
  torch = read.import_torch(path)
  state = {name: torch.tensor(x) for name, x in arrays.items()}
  state = collections.OrderedDict(state)
  state.metadata = metadata
  with files.atomic_write(path) as temporary:
    torch.save(state, temporary)


def sha256(path):
  """Computes the SHA-256 of a file, in hexadecimal."""
  with pathlib.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
