"""Custom images: their size and number, and in-memory images as a dataset."""

import dataclasses
import hashlib
import os
import statistics as stats

import numpy as np
from PIL import Image

from vit_ssl_jax.data import (
  cache,
  folder,
  load,
  npz,
  pixels,
  registry,
  statistics,
)
from vit_ssl_jax.errors import UserError, reading

SAMPLE = 200  # files whose headers are read


@dataclasses.dataclass(frozen=True)
class Facts:
  """Dataset size and image size, which the custom recipe follows."""

  images: int  # training images
  classes: int
  side: int  # median of the images' shorter sides, in pixels


def look(config, dataset=None) -> Facts:
  """The facts of a `load.Dataset`, or from headers of a config's dataset."""
  if dataset is not None:
    count, side = dataset.train_images.shape[:2]
    return Facts(count, len(dataset.classes), side)
  path = os.path.expanduser(config.dataset.partition(":")[2])
  if config.dataset.startswith(registry.NPZ):
    images, classes, side = of_npz(path)
  else:
    images, classes, side = of_folder(path, config.test_fraction)
  share = (1 - config.val_fraction) * config.data_fraction
  return Facts(max(1, round(share * images)), classes, side)


def of_npz(path):
  """Number of training images, of classes, and shorter side, from headers."""
  with reading(path), open(path, "rb") as file:
    archive = npz.open_archive(path, file)
    npz.check_headers(path, archive, "train")
    shape, _ = npz.header(archive, "train_images")
    labels = npz.intact(path, "train_labels", lambda: archive["train_labels"])
  return shape[0], len(set(labels.ravel().tolist())), min(shape[1:3])


def of_folder(path, test_fraction):
  """The same of a folder, from the headers of a sample of its images."""
  folders, listed, classes = folder.layout(path)
  part, share = ("all", 1 - test_fraction) if "all" in listed else ("train", 1)
  root = os.path.join(path, folders[part])
  files = [os.path.join(root, file) for file, *_ in listed[part]]
  return round(share * len(files)), len(classes), side_of(files)


def side_of(images):
  """Median of the shorter sides of images from `listed`, in pixels; or 0."""
  if isinstance(images, np.ndarray):
    return min(images.shape[1:3])
  sides = []
  for file in images[:: max(1, len(images) // SAMPLE)]:
    try:
      with pixels.quiet(), Image.open(file) as image:
        sides.append(min(image.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      continue  # the loader reports broken images
  return round(stats.median(sides)) if sides else 0


def listed(X):
  """Images of an array or folder, and their top folders' names if any."""
  if isinstance(X, str | os.PathLike):
    root = os.path.expanduser(os.fspath(X))
    if not os.path.isdir(root):
      raise UserError(f"there is no folder {root!r}")
    files = folder.names(root)
    names = [file.rpartition("/")[0].partition("/")[0] for file in files]
    paths = [os.path.join(root, file) for file in files]
    return paths, (names if all(names) else None)
  images = np.asarray(X)
  npz.check_images("X", images.dtype, images.shape)
  if images.ndim == 4 and images.shape[-1] == 1:
    images = images[..., 0]
  return images, None


def digest(images):
  """SHA-256 of images from `listed`; of a folder's, of their paths."""
  content = images if isinstance(images, np.ndarray) else repr(images).encode()
  return hashlib.sha256(np.ascontiguousarray(content)).hexdigest()


def decode(images, size):
  """Images from `listed` -> (N, S, S, 3) uint8 and fingerprints (N,)."""
  out = np.empty((len(images), size, size, 3), np.uint8)
  fingerprints, broken = pixels.decode_all(out, images, "crop", progress=True)
  if broken:
    row, why = next(iter(broken.items()))
    name = images[row] if isinstance(images, list) else f"image {row}"
    raise UserError(f"{len(broken)} images are broken, first {name} ({why})")
  return out, fingerprints


def dataset(name, images, labels, classes, size):
  """A `load.Dataset` of training images alone."""
  decoded, fingerprints = decode(images, size)
  train = cache.Decoded(decoded, labels, fingerprints, {})
  none = train.take(np.zeros(len(labels), bool))
  mean, std = statistics.of_channels(decoded)
  return load.Dataset(
    name=name,
    **load.arrays({"train": train, "val": none, "test": none}),
    classes=classes,
    mean=mean,
    std=std,
    whole_train_size=len(decoded),
    broken={},
  )
