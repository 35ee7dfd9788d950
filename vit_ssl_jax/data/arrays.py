"""Images in memory, or all of a folder's, as training images."""

import hashlib
import os

import numpy as np

from vit_ssl_jax.data import facts, folder, load, npz, pixels, statistics
from vit_ssl_jax.errors import UserError


def listed(X):
  """Images as a sequence, and the names of their folders where there are any.

  Args:
    X: (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, or a folder.

  Raises:
    UserError: X is neither, or holds no images.
  """
  if isinstance(X, str | os.PathLike):
    root = os.path.expanduser(os.fspath(X))
    if not os.path.isdir(root):
      raise UserError(f"there is no folder {root}")
    files = folder.names(root)
    names = [file.rpartition("/")[0].partition("/")[0] for file in files]
    paths = [os.path.join(root, file) for file in files]
    return paths, (names if all(names) else None)
  images = np.asarray(X)
  npz.check_images("X is", images.dtype, images.shape)
  if images.ndim == 4 and images.shape[-1] == 1:
    images = images[..., 0]
  return images, None


def digest(images):
  """What tells images of `listed` from others."""
  content = images if isinstance(images, np.ndarray) else repr(images).encode()
  return hashlib.sha256(np.ascontiguousarray(content)).hexdigest()


def side_of(images):
  """The shorter side of most images, in pixels."""
  if isinstance(images, np.ndarray):
    return min(images.shape[1:3])
  return facts.side_of(images)


def decode(images, size):
  """Images of `listed` -> (N, S, S, 3) uint8, and their fingerprints (N,).

  Raises:
    UserError: some are broken.
  """
  out = np.empty((len(images), size, size, 3), np.uint8)
  marks, broken = pixels.decode_all(out, images, "crop", progress=True)
  if broken:
    row, why = next(iter(broken.items()))
    name = images[row] if isinstance(images, list) else f"image {row}"
    raise UserError(f"{len(broken)} images are broken: {name} ({why}) first")
  return out, marks


def dataset(name, images, labels, classes, size):
  """A `load.Dataset` of training images alone."""
  decoded, marks = decode(images, size)
  mean, std = statistics.of_channels(decoded)
  none = {
    "images": decoded[:0],
    "labels": labels[:0],
    "fingerprints": marks[:0],
  }
  return load.Dataset(
    name=name,
    train_images=decoded,
    train_labels=labels,
    train_fingerprints=marks,
    **{f"{part}_{k}": x for part in ("val", "test") for k, x in none.items()},
    classes=classes,
    mean=mean,
    std=std,
    whole_train_size=len(decoded),
    broken={},
  )
