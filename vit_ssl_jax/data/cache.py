"""The user's cache directory, and decoded images kept in it."""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import logging

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError

STALE = 24 * 3600  # seconds after which a half-written file is nobody's


@dataclasses.dataclass(frozen=True)
class Decoded:
  """Images of one size, what they show, and those that could not be read."""

  # (N, S, S, 3) uint8; from the cache a read-only np.memmap, of which nothing
  # is in memory until it is looked at.
  images: np.ndarray
  labels: np.ndarray  # (N,) int32; -1 where the image could not be read
  fingerprints: np.ndarray  # (N,) uint64, of `fingerprints`
  broken: dict[str, str]  # the file's name -> why not


def fingerprints(images: np.ndarray) -> np.ndarray:
  """(N, S, S, 3) uint8 -> (N,) uint64, a hash of each image's bytes."""
  hashes = (hashlib.blake2b(x.tobytes(), digest_size=8) for x in images)
  data = b"".join(x.digest() for x in hashes)
  return np.frombuffer(data, "<u8").astype(np.uint64)


# Fills (N, S, S, 3) uint8 in; returns labels (N,) and what was broken.
Fill = Callable[[np.ndarray], tuple[np.ndarray, dict[str, str]]]


def directory(*parts: str) -> pathlib.Path:
  """Where this package caches: `$XDG_CACHE_HOME`, or else `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(root, "vit_ssl_jax", *parts).expanduser()


def memory() -> int:
  """Bytes of this machine's memory."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    temporary = _reserve(folder, shape)
  except OSError as error:
    return _in_memory(folder, shape, fill, error)
  try:
    out = np.lib.format.open_memmap(temporary, "r+")
    labels, broken = fill(out)
    content = {
      "labels": labels.tolist(),
      "fingerprints": fingerprints(out).tolist(),
      "broken": broken,
    }
    out.flush()
    del out
    os.replace(temporary, images)
    # Written last: without it the images are decoded again.
    files.write(rest, json.dumps(content))
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  return _read(images, rest)


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


def _reserve(folder: pathlib.Path, shape: tuple[int, ...]) -> pathlib.Path:
  """Makes a file for the images under a name that is not theirs yet."""
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("*.tmp"):  # of runs that were killed
    if time.time() - old.stat().st_mtime > STALE:
      old.unlink(missing_ok=True)
  # A full disk would kill the process when it writes to the mapped file.
  if shutil.disk_usage(folder).free < 1.05 * np.prod(shape):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
  handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
  os.close(handle)
  np.lib.format.open_memmap(name, "w+", np.uint8, shape)
  return pathlib.Path(name)


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
  labels, broken = fill(images)
  return Decoded(images, labels, fingerprints(images), broken)
