"""Custom datasets in one .npz file, laid out as in MedMNIST."""

import math
import os
import zipfile

import numpy as np

from vit_ssl_jax.data import cache
from vit_ssl_jax.errors import UserError, line, reading

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
VAL_KEYS = ("val_images", "val_labels")
MAX_CLASSES = 100_000  # larger labels are no class indices


def read(path, size, options):
  """Reads the arrays of `KEYS` and, if any, `VAL_KEYS`; ignores others.

  Images are (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, labels (N,) or
  (N, 1) integers, which name the classes.
  """
  with reading(path), open(path, "rb") as file:
    stat = os.fstat(file.fileno())
    key = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
    archive = open_archive(path, file)
    parts = {
      part: cache.decoded(
        f"npz-{part}",
        (*key, part),
        size,
        options,
        lambda part=part: read_part(path, archive, part),
      )
      for part in ("train", "val", "test")
      if part != "val" or VAL_KEYS[0] in archive.files
    }
  labels = set(parts["train"].labels.tolist())
  if len(labels) < 2:
    raise UserError(f"{path}: all train_labels are {labels.pop()}")
  for name, part in parts.items():
    if new := set(part.labels.tolist()) - labels:
      raise UserError(
        f"{path}: train_labels lacks {', '.join(map(str, sorted(new)[:10]))} of"
        f" {name}_labels"
      )
  return parts, tuple(str(i) for i in range(max(labels) + 1))


def open_archive(path, file):
  """Opens an archive and checks which arrays it has."""
  try:
    archive = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile):
    archive = None
  if not isinstance(archive, np.lib.npyio.NpzFile):
    raise UserError(f"{path} is not an .npz file as written by numpy.savez")
  has_val = any(key in archive.files for key in VAL_KEYS)
  keys = KEYS + VAL_KEYS if has_val else KEYS
  if missing := [key for key in keys if key not in archive.files]:
    raise UserError(
      f"{path} lacks {', '.join(missing)}: it must hold {', '.join(keys)}"
      f" and holds {', '.join(archive.files) or 'nothing'}"
    )
  return archive


def check_headers(path, archive, part):
  """Refuses invalid types and shapes, before reading any array."""
  (images, dtype), (labels, label_dtype) = (
    intact(path, key, lambda key=key: header(archive, key))
    for key in (f"{part}_images", f"{part}_labels")
  )
  check_images(f"{path}: {part}_images", dtype, images)
  flat = len(labels) == 1 or (len(labels) == 2 and labels[1] == 1)
  if not np.issubdtype(label_dtype, np.integer) or not flat:
    raise UserError(
      f"{path}: {part}_labels must be integers of shape (N,) or (N, 1), not"
      f" {label_dtype} of shape {labels}"
    )
  if images[0] != labels[0]:
    raise UserError(
      f"{path} has {images[0]} {part}_images but {labels[0]} {part}_labels"
    )


def check_images(name, dtype, shape):
  """Refuses a type and shape that no array of images has."""
  grey = len(shape) == 3
  colour = len(shape) == 4 and shape[-1] in (1, 3)
  if dtype != np.uint8 or not (grey or colour) or 0 in shape:
    raise UserError(
      f"{name} must be uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
      f" and not empty, not {dtype} of shape {shape}"
    )


def header(archive, key):
  """An array's shape and type; raises ValueError if it is not to be read."""
  name = f"{key}.npy"
  with archive.zip.open(name) as file:
    version = np.lib.format.read_magic(file)
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(file)
    if dtype.hasobject:
      raise ValueError("objects are never read")
    size = file.tell() + math.prod(shape) * dtype.itemsize
  if size != archive.zip.getinfo(name).file_size:
    raise ValueError(f"it is not as long as {dtype} of shape {shape}")
  memory = cache.memory()
  if size > memory / 2:
    raise ValueError(
      f"{size / 1e9:.0f} GB, of a memory of {memory / 1e9:.0f} GB"
    )
  return shape, dtype


def intact(path, key, read):
  """The value of `read()`, unless the array is damaged."""
  try:
    return read()
  except Exception as error:  # zip files and headers break in many ways
    raise UserError(f"{path}: {key} cannot be read ({line(error)})") from error


def read_part(path, archive, part):
  """Number, images and labels of one part, checked."""
  check_headers(path, archive, part)
  images, labels = (
    intact(path, key, lambda key=key: archive[key])
    for key in (f"{part}_images", f"{part}_labels")
  )
  labels = labels.reshape(-1)
  if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
    raise UserError(
      f"{path}: {part}_labels must be from 0 to {MAX_CLASSES - 1}, not from"
      f" {labels.min()} to {labels.max()}"
    )
  if images.ndim == 4 and images.shape[-1] == 1:
    images = images[..., 0]
  return len(images), images, labels
