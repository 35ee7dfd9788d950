"""Decoded images, cached as memory-mapped files in the user's cache folder."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import pixels
from vit_ssl_jax.errors import UserError

# Part of the cache's key: raise it when reading or decoding changes.
FORMAT = 4
ABANDONED = 3600  # seconds without a write
# Memory limits of containers: cgroup version 2 and 1.
LIMITS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


class Rows:
  """Lazily read rows of an image array; `numpy.asarray` copies them."""

  def __init__(self, array, index):
    self.array, self.index = array, index
    self.shape = (len(index), *array.shape[1:])
    self.dtype = array.dtype
    self.ndim = array.ndim
    self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

  def __len__(self):
    return len(self.index)

  def __getitem__(self, rows):
    return np.asarray(self.array[self.index[rows]])

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.array[self.index], dtype)


def select(images, index):
  """Rows `index`, (M,) sorted, of images; the images if these are all."""
  if len(index) == len(images):
    return images
  if isinstance(images, Rows):
    return Rows(images.array, images.index[index])
  return Rows(images, index)


@dataclasses.dataclass(frozen=True)
class Decoded:
  """Decoded images, labels and decoding errors."""

  images: np.ndarray | Rows  # (N, S, S, 3) uint8; a np.memmap from the cache
  labels: np.ndarray  # (N,) int32; -1 marks rows that do not belong
  fingerprints: np.ndarray  # (N,) uint64, of `pixels.decode_all`
  broken: dict  # row or file name -> reason

  def take(self, mask):
    """The rows where the mask, (N,) bool, is True."""
    images = select(self.images, np.flatnonzero(mask))
    labels, fingerprints = self.labels[mask], self.fingerprints[mask]
    return Decoded(images, labels, fingerprints, self.broken)


def memory():
  """Bytes of memory of this machine, or of its container."""
  sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for path in LIMITS:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
      sizes.append(int(pathlib.Path(path).read_text()))
  return min(sizes)


@contextlib.contextmanager
def in_turn():
  """Admits one process of this machine at a time, if there is a cache."""
  with contextlib.ExitStack() as stack:
    with contextlib.suppress(OSError):
      files.cache_directory().mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(files.cache_directory("lock"), "w"))
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def decoded(name, key, size, options, find) -> Decoded:
  """Images from the cache, or decoded into it, or else into memory.

  `key` is all that the images depend on, beside `size` and `options.resize`.
  `find` returns (N, images to decode, labels), where reading the images may
  append to the labels; it is called if the images are not cached.
  """
  content = repr((FORMAT, key, size, options.resize)).encode()
  stem = f"{name}-{size}-{hashlib.sha256(content).hexdigest()[:16]}"
  path = files.cache_directory("decoded") / f"{stem}.npy"
  if cached := read(path):
    return cached
  count, stored, stored_labels = find()

  def fill(out):
    fingerprints, broken = pixels.decode_all(
      out, stored, options.resize, f"decoding {name}", options.progress
    )
    labels = np.array(stored_labels, np.int32)
    labels[list(broken)] = -1
    return Decoded(out, labels, fingerprints, broken)

  shape = (count, size, size, 3)
  try:
    temporary = reserve(path.parent, shape)
  except OSError as error:
    check_memory(shape, error)
    return fill(np.empty(shape, np.uint8))
  try:
    out = np.lib.format.open_memmap(temporary, "r+")
    part = fill(out)
    out.flush()
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  content = {
    "labels": part.labels.tolist(),
    "fingerprints": part.fingerprints.tolist(),
    "broken": part.broken,
  }
  try:  # the JSON file makes the images count
    files.write(path.with_suffix(".json"), json.dumps(content))
  except OSError as error:
    cli.log(f"warning: the decoded images are not cached ({error})")
  return dataclasses.replace(part, images=np.load(path, mmap_mode="r"))


def read(path):
  """Cached images and labels, or None."""
  try:
    content = json.loads(path.with_suffix(".json").read_text())
    part = Decoded(
      images=np.load(path, mmap_mode="r"),
      labels=np.array(content["labels"], np.int32),
      fingerprints=np.array(content["fingerprints"], np.uint64),
      broken={int(row): why for row, why in content["broken"].items()},
    )
    if len(part.images) != len(part.labels):
      raise ValueError(f"{path} has another number of labels")
    return part
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, EOFError) as error:
    cli.log(f"warning: decoding again: the cache is unreadable ({error})")
    return None


def reserve(folder, shape):
  """Allocates a temporary .npy file for images of this shape."""
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("*.tmp"):  # left by a killed process
    with contextlib.suppress(OSError):
      if time.time() - old.stat().st_mtime > ABANDONED:
        old.unlink()
  handle, name = tempfile.mkstemp(".tmp", dir=folder)
  try:
    np.lib.format.open_memmap(name, "w+", np.uint8, shape)
    # Writing to a mapped file on a full disk would kill the process.
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(handle, 0, os.fstat(handle).st_size)
  except OSError:
    os.unlink(name)
    raise
  finally:
    os.close(handle)
  return pathlib.Path(name)


def check_memory(shape, error):
  """Warns that there is no cache; raises UserError if memory is too small."""
  size = int(np.prod(shape))
  if size > 0.8 * memory():
    folder = files.cache_directory("decoded")
    raise UserError(
      f"the decoded images take {size / 1e9:.1f} GB and fit neither in memory"
      f" nor in the cache ({folder}: {error.strerror}): set XDG_CACHE_HOME to a"
      " larger disk"
    )
  cli.log(f"warning: the decoded images are not cached ({error})")
