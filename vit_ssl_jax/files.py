"""Files and folders that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil

from vit_ssl_jax.errors import UserError


def cache_directory(*parts: str) -> pathlib.Path:
  """Where this package caches: `$XDG_CACHE_HOME`, or else `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(root, "vit_ssl_jax", *parts).expanduser()


def write(path, text):
  """Writes a text file, in place of one that is there."""
  with atomic_write(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def read_json(path):
  """The content of a file of JSON.

  Raises:
    UserError: it is missing, or no JSON that can be read.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise UserError(f"there is no {path}") from e
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e})") from e


@contextlib.contextmanager
def atomic_write(path):
  """Yields a new path to write a file or a folder to, and moves it to `path`.

  It lies beside `path`, whose file or folder it replaces; where writing fails,
  nothing of it is left and what was there stays.
  """
  path = pathlib.Path(path)
  # Of this process alone: another may be writing the same file.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    yield temporary
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    if path.is_dir():  # which nothing can replace in one move
      os.replace(path, old)
    try:
      os.replace(temporary, path)
    except OSError:
      if old.exists():
        os.replace(old, path)
      raise
    remove(old)
  finally:
    remove(temporary)


def remove(path):
  """Removes a file or a folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
