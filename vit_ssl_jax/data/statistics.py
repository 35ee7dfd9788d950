"""Channel means and standard deviations, computed once and cached."""

import contextlib
import hashlib
import json
import os

import numpy as np
from PIL import Image

from vit_ssl_jax import files
from vit_ssl_jax.data import cache, pixels

CHUNK = 2**24  # bytes of images at a time


def of_channels(images, progress=False):
  """(N, S, S, 3) uint8 -> mean and standard deviation of channels in [0, 1].

  The deviation of a channel that varies by less than one level is 1.
  """
  counts = np.zeros((3, 256), np.int64)
  step = max(1, CHUNK // int(np.prod(images.shape[1:])))
  label = "mean and standard deviation"
  with pixels.progress_bar(len(images), label, progress) as bar:
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


def cached(images, progress=False):
  """`of_channels`, cached on disk if the images are."""
  index = images.index.tobytes() if isinstance(images, cache.Rows) else b""
  file = getattr(getattr(images, "array", images), "filename", None)
  if file is None:
    return of_channels(images, progress)
  source = repr((str(file), os.stat(file).st_mtime_ns, images.shape)).encode()
  digest = hashlib.sha256(source + index).hexdigest()[:16]
  path = files.cache_directory("statistics") / f"{digest}.json"
  with contextlib.suppress(OSError, ValueError):
    mean, std = json.loads(path.read_text())
    return tuple(mean), tuple(std)
  mean, std = of_channels(images, progress)
  with contextlib.suppress(OSError):  # the next run computes it again
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps((mean, std)))
  return mean, std
