"""Mean and standard deviation of a set's channels, computed once."""

import hashlib
import json
import os

import numpy as np
from PIL import Image

from vit_ssl_jax import files
from vit_ssl_jax.data import rows
from vit_ssl_jax.data.pixels import progress_bar

CHUNK = 2**24  # bytes of images at a time


def of_channels(
  images, *, progress: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(N, S, S, 3) uint8 -> mean and standard deviation, three numbers each.

  Over all pixels of all images, in units of [0, 1], and exact: from counts of
  the 256 values. A channel that does not vary by a level of grey is as good as
  constant: its deviation is given as 1, so that it can be divided by.
  """
  counts = np.zeros((3, 256), np.int64)
  step = max(1, CHUNK // int(np.prod(images.shape[1:])))
  label = "mean and standard deviation"
  with progress_bar(len(images), label, progress) as bar:
    for start in range(0, len(images), step):
      chunk = np.asarray(images[start : start + step])
      # Pillow counts in place; NumPy would widen every pixel to 64 bits.
      tower = Image.fromarray(chunk.reshape(-1, *chunk.shape[2:]))
      counts += np.reshape(tower.histogram(), (3, 256))
      bar.update(len(chunk))
  values = np.arange(256) / 255
  share = counts / counts.sum(1, keepdims=True)
  mean = share @ values
  std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
  std = np.where(std < 1 / 255, 1, std)
  return tuple(mean.tolist()), tuple(std.tolist())


def cached(images, *, progress: bool = False):
  """`of_channels`, kept in the cache where the images are kept there."""
  chosen = images.index.tobytes() if isinstance(images, rows.Rows) else b""
  file = getattr(getattr(images, "array", images), "filename", None)
  if file is None:
    return of_channels(images, progress=progress)
  source = repr((str(file), os.stat(file).st_mtime_ns, images.shape)).encode()
  digest = hashlib.sha256(source + chosen).hexdigest()[:16]
  path = files.cache_directory("statistics") / f"{digest}.json"
  try:
    mean, std = json.loads(path.read_text())
    return tuple(mean), tuple(std)
  except (OSError, ValueError):
    pass
  found = of_channels(images, progress=progress)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found))
  except OSError:
    pass  # the next start computes it again
  return found
