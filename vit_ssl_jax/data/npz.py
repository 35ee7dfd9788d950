"""One .npz file as a data set, laid out as in MedMNIST. No TensorFlow."""

import math
import os
import zipfile

import numpy as np

from vit_ssl_jax.data import cache
from vit_ssl_jax.errors import UserError, line

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
VAL_KEYS = ("val_images", "val_labels")
MAX_CLASSES = 100_000  # more are not classes but something else


def read(
  path: str, image_size: int, *, resize: str, progress: bool
) -> tuple[dict[str, cache.Decoded], tuple[str, ...]]:
  """Reads the arrays of `KEYS` and, if there are any, `VAL_KEYS`.

  Images are (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, labels (N,) or
  (N, 1) integers; other arrays are ignored. Arguments are those of `load.load`.

  Returns:
    "train", "test" and, where the file has it, "val"; and the classes' names,
    which are their numbers.

  Raises:
    UserError: the file or one of its arrays is missing or not as above.
  """
  try:
    with open(path, "rb") as file:
      stat = os.fstat(file.fileno())
      key = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
      archive = open_archive(path, file)
      parts = {
        part: cache.decoded(
          f"npz-{part}",
          (*key, part),
          image_size,
          resize,
          lambda part=part: read_part(path, archive, part),
          progress,
        )
        for part in ("train", "val", "test")
        if part != "val" or VAL_KEYS[0] in archive.files
      }
  except FileNotFoundError:
    raise UserError(f"There is no file {path}.") from None
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  trained = set(parts["train"].labels.tolist())
  if len(trained) < 2:
    raise UserError(
      f"{path}: all train_labels are {trained.pop()}; there must be two classes"
      " at least."
    )
  for part, found in parts.items():
    if new := set(found.labels.tolist()) - trained:
      raise UserError(
        f"{path}: {part}_labels has {', '.join(map(str, sorted(new)[:10]))},"
        " which train_labels has not."
      )
  return parts, tuple(str(i) for i in range(max(trained) + 1))


def open_archive(path: str, file) -> np.lib.npyio.NpzFile:
  """The archive, after checking which arrays it has."""
  try:
    archive = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile):
    archive = None
  if not isinstance(archive, np.lib.npyio.NpzFile):
    raise UserError(f"{path} is not an .npz file as numpy.savez writes it.")
  has_val = any(key in archive.files for key in VAL_KEYS)
  wanted = KEYS + VAL_KEYS if has_val else KEYS
  missing = [key for key in wanted if key not in archive.files]
  if missing:
    raise UserError(
      f"{path} lacks {', '.join(missing)}: it must hold {', '.join(wanted)}"
      f" and holds {', '.join(archive.files) or 'nothing'}."
    )
  return archive


def check_headers(path: str, archive, part: str) -> None:
  """Raises a UserError for types and shapes, before any array is read."""
  shapes, types = [], []
  for key in (f"{part}_images", f"{part}_labels"):
    shape, dtype = reading(path, key, lambda key=key: header(archive, key))
    shapes.append(shape)
    types.append(dtype)
  images, labels = shapes
  check_images(f"{path}: {part}_images is", types[0], images)
  flat = len(labels) == 1 or (len(labels) == 2 and labels[1] == 1)
  if not np.issubdtype(types[1], np.integer) or not flat:
    raise UserError(
      f"{path}: {part}_labels is {types[1]} of shape {labels}; it must be"
      " integers of shape (N,) or (N, 1)."
    )
  if images[0] != labels[0]:
    raise UserError(
      f"{path} has {images[0]} {part}_images but {labels[0]} {part}_labels;"
      " there must be one label per image."
    )


def check_images(words: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
  """Raises a UserError, which begins with words, for what is no images."""
  grey = len(shape) == 3
  colour = len(shape) == 4 and shape[-1] in (1, 3)
  if dtype != np.uint8 or not (grey or colour) or 0 in shape:
    raise UserError(
      f"{words} {dtype} of shape {shape}; it must be uint8 of shape (N, H, W),"
      " (N, H, W, 1) or (N, H, W, 3), not empty."
    )


def header(archive, key: str) -> tuple[tuple[int, ...], np.dtype]:
  """An array's shape and type, which its bytes in the archive have to fit.

  Raises:
    ValueError: they do not, or would not fit into the machine's memory.
  """
  name = f"{key}.npy"
  with archive.zip.open(name) as file:
    version = np.lib.format.read_magic(file)
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(file)
    if dtype.hasobject:
      raise ValueError("Objects are never read")
    size = file.tell() + math.prod(shape) * dtype.itemsize
  if size != archive.zip.getinfo(name).file_size:
    raise ValueError(f"it is not as long as {dtype} of shape {shape}")
  memory = cache.memory()
  if size > memory / 2:
    raise ValueError(
      f"{size / 1e9:.0f} GB are more than half of the memory of"
      f" {memory / 1e9:.0f} GB"
    )
  return shape, dtype


def reading(path: str, key: str, read):
  """What `read` gives, or a UserError where the array is damaged."""
  try:
    return read()
  except Exception as error:  # zip files and headers break in many ways
    raise UserError(f"{path}: {key} cannot be read ({line(error)}).") from error


def read_part(path: str, archive, part: str) -> cache.Stored:
  """One part's images and labels, checked."""
  check_headers(path, archive, part)
  images, labels = (
    reading(path, key, lambda key=key: archive[key])
    for key in (f"{part}_images", f"{part}_labels")
  )
  colour = images.ndim == 4
  labels = labels.reshape(-1)
  if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
    raise UserError(
      f"{path}: {part}_labels runs from {labels.min()} to {labels.max()};"
      f" labels are class indices from 0 to at most {MAX_CLASSES - 1}."
    )
  if colour and images.shape[-1] == 1:
    images = images[..., 0]
  return cache.Stored(len(images), images, labels)
