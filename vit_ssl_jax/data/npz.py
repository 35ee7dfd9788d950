"""One .npz file as a data set, laid out as in MedMNIST. No TensorFlow."""

import zipfile

import numpy as np

from vit_ssl_jax.data import cache
from vit_ssl_jax.data.pixels import square_rgb
from vit_ssl_jax.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
VAL_KEYS = ("val_images", "val_labels")
MAX_CLASSES = 100_000  # more are not classes but something else


def read_square(
  path: str, image_size: int, *, resize: str, progress: bool
) -> tuple[dict[str, cache.Decoded], tuple[str, ...]]:
  """Reads a file as a set of square images.

  Args:
    path: of the file.
    image_size: S.
    resize: one of `pixels.RESIZES`.
    progress: whether resizing shows a bar.

  Returns:
    "train", "test" and, where the file has it, "val"; and the classes' names,
    which are their numbers.

  Raises:
    UserError: as of `read`.
  """
  arrays = read(path)
  trained = set(arrays["train_labels"].tolist())
  if len(trained) < 2:
    raise UserError(
      f"{path}: all train_labels are {trained.pop()}; there must be two classes"
      " at least."
    )
  for part in ("val", "test"):
    if new := set(arrays.get(f"{part}_labels", np.zeros(0)).tolist()) - trained:
      raise UserError(
        f"{path}: {part}_labels has {', '.join(map(str, sorted(new)[:10]))},"
        " which train_labels has not."
      )
  parts = {}
  for key in [key for key in arrays if "images" in key]:
    images = square_rgb(
      arrays[key], image_size, resize=resize, progress=progress
    )
    parts[key.removesuffix("_images")] = cache.Decoded(
      images=images,
      labels=arrays[key.replace("images", "labels")],
      fingerprints=cache.fingerprints(images),
      broken={},
    )
  return parts, tuple(str(i) for i in range(max(trained) + 1))


def read(path: str) -> dict[str, np.ndarray]:
  """Reads and checks the arrays of `KEYS` and, if there are any, `VAL_KEYS`.

  Returns:
    images (N, H, W) or (N, H, W, C) uint8 with C 1 or 3; labels (N,) int32.

  Raises:
    UserError: the file or one of its arrays is missing or not as above.
  """
  try:
    with open(path, "rb") as file:
      arrays = _arrays(path, file)
  except FileNotFoundError:
    raise UserError(f"There is no file {path}.") from None
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  for images in [key for key in arrays if "images" in key]:
    labels = images.replace("images", "labels")
    _check_images(path, images, arrays[images])
    arrays[labels] = _labels(path, labels, arrays[labels])
    if len(arrays[images]) != len(arrays[labels]):
      raise UserError(
        f"{path} has {len(arrays[images])} {images} but "
        f"{len(arrays[labels])} {labels}; there must be one label per image."
      )
  return arrays


def _arrays(path: str, file) -> dict[str, np.ndarray]:
  try:
    archive = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile):
    archive = None
  if not isinstance(archive, np.lib.npyio.NpzFile):
    raise UserError(f"{path} is not an .npz file as numpy.savez writes it.")
  missing = [key for key in KEYS if key not in archive.files]
  if missing:
    raise UserError(
      f"{path} lacks {', '.join(missing)}: it must hold {', '.join(KEYS)} and "
      f"holds {', '.join(archive.files) or 'nothing'}."
    )
  arrays = {}
  with_val = all(key in archive.files for key in VAL_KEYS)
  for key in (*KEYS, *VAL_KEYS) if with_val else KEYS:
    try:
      arrays[key] = archive[key]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      raise UserError(f"{path}: {key} cannot be read ({error}).") from error
  return arrays


def _check_images(path: str, key: str, images: np.ndarray) -> None:
  grey = images.ndim == 3
  colour = images.ndim == 4 and images.shape[-1] in (1, 3)
  if images.dtype != np.uint8 or not (grey or colour) or not images.size:
    raise UserError(
      f"{path}: {key} is {images.dtype} of shape {images.shape}; it must be "
      "uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), not empty."
    )


def _labels(path: str, key: str, labels: np.ndarray) -> np.ndarray:
  flat = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
  if not np.issubdtype(labels.dtype, np.integer) or not flat:
    raise UserError(
      f"{path}: {key} is {labels.dtype} of shape {labels.shape}; it must be "
      "integers of shape (N,) or (N, 1)."
    )
  labels = labels.reshape(-1)
  if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
    raise UserError(
      f"{path}: {key} runs from {labels.min()} to {labels.max()}; labels are "
      f"class indices from 0 to at most {MAX_CLASSES - 1}."
    )
  return labels.astype(np.int32)
