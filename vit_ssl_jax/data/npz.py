"""One .npz file as a data set, laid out as in MedMNIST. No TensorFlow."""

import os
import zipfile

import numpy as np

from vit_ssl_jax.data import cache
from vit_ssl_jax.errors import UserError

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
  except (ValueError, EOFError, zipfile.BadZipFile):
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


def read_part(path: str, archive, part: str) -> cache.Stored:
  """One part's images and labels, checked."""
  found = []
  for key in (f"{part}_images", f"{part}_labels"):
    try:
      found.append(archive[key])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      raise UserError(f"{path}: {key} cannot be read ({error}).") from error
  images, labels = found
  grey = images.ndim == 3
  colour = images.ndim == 4 and images.shape[-1] in (1, 3)
  if images.dtype != np.uint8 or not (grey or colour) or not images.size:
    raise UserError(
      f"{path}: {part}_images is {images.dtype} of shape {images.shape}; it"
      " must be uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), not"
      " empty."
    )
  flat = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
  if not np.issubdtype(labels.dtype, np.integer) or not flat:
    raise UserError(
      f"{path}: {part}_labels is {labels.dtype} of shape {labels.shape}; it"
      " must be integers of shape (N,) or (N, 1)."
    )
  labels = labels.reshape(-1)
  if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
    raise UserError(
      f"{path}: {part}_labels runs from {labels.min()} to {labels.max()};"
      f" labels are class indices from 0 to at most {MAX_CLASSES - 1}."
    )
  if len(images) != len(labels):
    raise UserError(
      f"{path} has {len(images)} {part}_images but {len(labels)} "
      f"{part}_labels; there must be one label per image."
    )
  if colour and images.shape[-1] == 1:
    images = images[..., 0]
  return cache.Stored(len(images), images, labels)
