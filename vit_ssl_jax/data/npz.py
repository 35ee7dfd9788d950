"""One .npz file as a data set, laid out as in MedMNIST. No TensorFlow."""

import zipfile

import numpy as np

from vit_ssl_jax.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
MAX_CLASSES = 100_000  # more are not classes but something else


def read(path: str) -> dict[str, np.ndarray]:
  """Reads and checks the four arrays of `KEYS`; others are ignored.

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
  for part in ("train", "test"):
    images, labels = f"{part}_images", f"{part}_labels"
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
  for key in KEYS:
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
