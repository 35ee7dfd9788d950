"""The user's cache directory, and decoded images kept in it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import logging

from vit_ssl_jax import files
from vit_ssl_jax.cli import UserError


@dataclasses.dataclass(frozen=True)
class Decoded:
  """Images of one size, what they show, and those that could not be read."""

  # (N, S, S, 3) uint8; from the cache a read-only np.memmap, of which nothing
  # is in memory until it is looked at.
  images: np.ndarray
  labels: np.ndarray  # (N,) int32; -1 where the image could not be read
  fingerprints: np.ndarray  # (N,) uint64, of `pixels.decode_all`
  broken: dict[str, str]  # the file's name -> why not


# Fills (N, S, S, 3) uint8 in; returns labels, fingerprints and what is broken.
Fill = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, dict[str, str]]]
# Where a container's or a job's limit stands, version 2 and 1.
LIMITS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def directory(*parts: str) -> pathlib.Path:
  """Where this package caches: `$XDG_CACHE_HOME`, or else `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(root, "vit_ssl_jax", *parts).expanduser()


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
      directory().mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(directory("lock"), "w"))
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def decoded(stem: str, shape: tuple[int, ...], fill: Fill) -> Decoded:
  """Images from the cache, or decoded into it by `fill`.

  They are written to the file as they are decoded, so that they never have to
  fit in memory. `stem` must name everything that they depend on. A cache that
  cannot be read or written costs time, memory and a warning, nothing else.

  Raises:
    UserError: there is room for the images neither in the cache nor in memory.
  """
  if found := find(stem):
    return found
  folder = directory("decoded")
  images, rest = _paths(stem)
  try:
    file = _reserve(folder, shape)
  except OSError as error:
    return _in_memory(folder, shape, fill, error)
  with file:  # the lock that says that it is being written
    try:
      out = np.lib.format.open_memmap(file.name, "r+")
      labels, fingerprints, broken = fill(out)
      out.flush()
      del out
      os.replace(file.name, images)
    except BaseException:
      pathlib.Path(file.name).unlink(missing_ok=True)
      raise
  content = {
    "labels": labels.tolist(),
    "fingerprints": fingerprints.tolist(),
    "broken": broken,
  }
  try:  # last: without it the images are decoded again
    files.write(rest, json.dumps(content))
  except OSError as error:
    logging.warning("The decoded images are not cached (%s).", error)
  return Decoded(np.load(images, mmap_mode="r"), labels, fingerprints, broken)


def find(stem: str) -> Decoded | None:
  """The images that `decoded` has put into the cache, if it has."""
  try:
    return _read(*_paths(stem))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, EOFError) as error:
    logging.warning("Decoding again: the cache is unreadable (%s).", error)
    return None


def _paths(stem: str) -> tuple[pathlib.Path, pathlib.Path]:
  folder = directory("decoded")
  return folder / f"{stem}.npy", folder / f"{stem}.json"


def _read(images: pathlib.Path, rest: pathlib.Path) -> Decoded:
  content = json.loads(rest.read_text())
  found = Decoded(
    images=np.load(images, mmap_mode="r"),
    labels=np.array(content["labels"], np.int32),
    fingerprints=np.array(content["fingerprints"], np.uint64),
    broken=content["broken"],
  )
  if len(found.images) != len(found.labels):
    raise ValueError(f"{images} and {rest} do not belong together")
  return found


def _reserve(folder: pathlib.Path, shape: tuple[int, ...]):
  """Makes a file for the images, open and locked, under a name of its own."""
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("*.tmp"):
    with contextlib.suppress(OSError), old.open("rb") as left:
      fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if time.time() - old.stat().st_mtime > 60:
        old.unlink()  # nobody holds it: its process was killed
  # The caller closes it, and with that its lock.
  file = tempfile.NamedTemporaryFile(  # noqa: SIM115
    dir=folder, suffix=".tmp", delete=False
  )
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    np.lib.format.open_memmap(file.name, "w+", np.uint8, shape)
    # Else a full disk kills the process when it writes to the mapped file.
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
  except OSError:
    file.close()
    os.unlink(file.name)
    raise
  return file


def _in_memory(folder, shape, fill, error) -> Decoded:
  size = int(np.prod(shape))
  if size > 0.8 * memory():
    raise UserError(
      f"the decoded images take {size / 1e9:.1f} GB, which fit neither in"
      f" memory nor in the cache, {folder} ({error.strerror}): XDG_CACHE_HOME"
      " chooses another place for it"
    )
  logging.warning("The decoded images are not cached (%s).", error)
  images = np.empty(shape, np.uint8)
  return Decoded(images, *fill(images))
