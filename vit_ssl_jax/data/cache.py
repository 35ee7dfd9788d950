"""The user's cache directory, and arrays kept in it."""

import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
from absl import logging


def directory(*parts: str) -> pathlib.Path:
  """Where this package caches: `$XDG_CACHE_HOME`, or else `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(root, "vit_ssl_jax", *parts).expanduser()


def arrays(
  folder: pathlib.Path, stem: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """The arrays "images" and "labels", from the cache or from `make`.

  Each is one file, `folder/stem.NAME.npy`. `stem` must name everything that
  the arrays depend on. A cache that cannot be read or written costs time and
  a warning, nothing else.
  """
  paths = {name: folder / f"{stem}.{name}.npy" for name in ("images", "labels")}
  try:
    found = {name: np.load(path) for name, path in paths.items()}
    if len(found["images"]) == len(found["labels"]):
      return found
  except FileNotFoundError:
    pass
  except (OSError, ValueError, EOFError) as error:
    logging.warning("Decoding again: the cache is unreadable (%s).", error)
  made = make()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
      _save(path, made[name])
  except OSError as error:
    logging.warning("The decoded images are not cached (%s).", error)
  return made


def _save(path: pathlib.Path, array: np.ndarray) -> None:
  # Written beside its place and moved there, so that nobody reads half a file.
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
  try:
    with os.fdopen(handle, "wb") as file:
      np.save(file, array)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
