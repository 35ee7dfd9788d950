"""Mean and standard deviation of a set's channels, computed once."""

import hashlib
import json
import os

import numpy as np
import tqdm

from vit_ssl_jax import files
from vit_ssl_jax.data import cache
from vit_ssl_jax.data.pixels import bar_off

CHUNK = 4096  # images


def of_channels(
  images, *, progress: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(N, S, S, 3) uint8 -> mean and standard deviation, three numbers each.

  Over all pixels of all images, in units of [0, 1], and exact: from counts of
  the 256 values.
  """
  counts = np.zeros((3, 256), np.int64)
  bar = tqdm.tqdm(
    total=len(images),
    desc="mean and standard deviation",
    unit="image",
    leave=False,
    disable=bar_off(progress),
  )
  with bar:
    for start in range(0, len(images), CHUNK):
      chunk = images[start : start + CHUNK].reshape(-1, 3)
      for channel in range(3):
        counts[channel] += np.bincount(chunk[:, channel], minlength=256)
      bar.update(min(CHUNK, len(images) - start))
  values = np.arange(256) / 255
  share = counts / counts.sum(1, keepdims=True)
  mean = share @ values
  std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
  return tuple(mean.tolist()), tuple(std.tolist())


def cached(images, source: str, *, progress: bool = False):
  """`of_channels`, kept in the cache under what the images come from.

  Args:
    images: (N, S, S, 3) uint8.
    source: a text that names everything that the images depend on.
    progress: whether a bar is shown.
  """
  digest = hashlib.sha256(source.encode()).hexdigest()[:16]
  path = cache.directory("statistics") / f"{digest}.json"
  try:
    mean, std = json.loads(path.read_text())
    return tuple(mean), tuple(std)
  except (OSError, ValueError):
    pass
  found = of_channels(images, progress=progress)
  try:
    os.makedirs(path.parent, exist_ok=True)
    files.write(path, json.dumps(found))
  except OSError:
    pass  # the next start computes it again
  return found
