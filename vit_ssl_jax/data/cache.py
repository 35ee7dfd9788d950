"""Decoded images, kept in the user's cache directory."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import pixels
from vit_ssl_jax.errors import UserError

# Part of the cache's key: raise it when reading or decoding changes.
FORMAT = 4
ABANDONED = 3600  # seconds since a file was written to
# Where a container's or a job's limit stands, version 2 and 1.
LIMITS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


@dataclasses.dataclass(frozen=True)
class Stored:
  """N images before they are decoded."""

  count: int
  files: Iterable[pixels.Stored]
  # (N,); may grow while `files` is read.
  labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Decoded:
  """N images of one size, what they show, and which could not be read."""

  # (N, S, S, 3) uint8; from the cache a read-only np.memmap, of which nothing
  # is in memory until it is looked at.
  images: np.ndarray
  labels: np.ndarray  # (N,) int32; -1 where the image could not be read
  fingerprints: np.ndarray  # (N,) uint64, of `pixels.decode_all`
  broken: dict[int, str]  # row -> why


def memory() -> int:
  """Bytes of memory of this machine, or of the container on it."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for path in LIMITS:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
      found.append(int(pathlib.Path(path).read_text()))
  return min(found)


@contextlib.contextmanager
def in_turn():
  """Lets one process of this machine in at a time, where there is a cache."""
  with contextlib.ExitStack() as stack:
    with contextlib.suppress(OSError):
      files.cache_directory().mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(files.cache_directory("lock"), "w"))
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def decoded(
  name: str,
  key: tuple,
  size: int,
  resize: str,
  find: Callable[[], Stored],
  progress: bool = False,
) -> Decoded:
  """Images from the cache, or decoded into it.

  They are written to the cache as they are decoded, so that they never have to
  fit in memory. A cache that cannot be read or written costs time, memory and a
  warning, nothing else.

  Args:
    name: how the files of the cache and the progress bar begin.
    key: all that the images depend on but `size`, S, and `resize`.
    find: called where the cache does not have them.

  Raises:
    UserError: of `find` and `pixels.decode_all`, or there is room for the
      images neither in the cache nor in memory.
  """
  content = repr((FORMAT, key, size, resize)).encode()
  stem = f"{name}-{size}-{hashlib.sha256(content).hexdigest()[:16]}"
  path = files.cache_directory("decoded") / f"{stem}.npy"
  if found := read(path):
    return found
  stored = find()

  def fill(out):
    marks, broken = pixels.decode_all(
      out, stored.files, resize, label=f"decoding {name}", progress=progress
    )
    labels = np.array(stored.labels, np.int32)
    labels[list(broken)] = -1
    return Decoded(out, labels, marks, broken)

  shape = (stored.count, size, size, 3)
  try:
    temporary = reserve(path.parent, shape)
  except OSError as error:
    check_memory(shape, error)
    return fill(np.empty(shape, np.uint8))
  try:
    out = np.lib.format.open_memmap(temporary, "r+")
    found = fill(out)
    out.flush()
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  write_rest(path, found)
  return dataclasses.replace(found, images=np.load(path, mmap_mode="r"))


def read(path: pathlib.Path) -> Decoded | None:
  """The images of a file, with what stands beside it; None where it is not."""
  try:
    content = json.loads(path.with_suffix(".json").read_text())
    found = Decoded(
      images=np.load(path, mmap_mode="r"),
      labels=np.array(content["labels"], np.int32),
      fingerprints=np.array(content["fingerprints"], np.uint64),
      broken={int(row): why for row, why in content["broken"].items()},
    )
    if len(found.images) != len(found.labels):
      raise ValueError(f"{path} has another number of labels")
    return found
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, EOFError) as error:
    cli.log(f"warning: decoding again: the cache is unreadable ({error})")
    return None


def write_rest(path: pathlib.Path, found: Decoded) -> None:
  """Writes what stands beside the images; without it they do not count."""
  content = {
    "labels": found.labels.tolist(),
    "fingerprints": found.fingerprints.tolist(),
    "broken": found.broken,
  }
  try:
    files.write(path.with_suffix(".json"), json.dumps(content))
  except OSError as error:
    cli.log(f"warning: the decoded images are not cached ({error})")


def reserve(folder: pathlib.Path, shape: tuple[int, ...]) -> pathlib.Path:
  """Makes a file for the images, under a name of its own."""
  folder.mkdir(parents=True, exist_ok=True)
  for left in folder.glob("*.tmp"):  # by a process that was killed
    with contextlib.suppress(OSError):
      if time.time() - left.stat().st_mtime > ABANDONED:
        left.unlink()
  handle, name = tempfile.mkstemp(".tmp", dir=folder)
  try:
    np.lib.format.open_memmap(name, "w+", np.uint8, shape)
    # Else a full disk kills the process when it writes to the mapped file.
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(handle, 0, os.fstat(handle).st_size)
  except OSError:
    os.unlink(name)
    raise
  finally:
    os.close(handle)
  return pathlib.Path(name)


def check_memory(shape: tuple[int, ...], error: OSError) -> None:
  """Warns, or raises UserError where the images do not fit in memory either."""
  size = int(np.prod(shape))
  if size > 0.8 * memory():
    folder = files.cache_directory("decoded")
    raise UserError(
      f"the decoded images take {size / 1e9:.1f} GB, which fit neither in"
      f" memory nor in the cache, {folder} ({error.strerror}): XDG_CACHE_HOME"
      " chooses another place for it"
    )
  cli.log(f"warning: the decoded images are not cached ({error})")
