"""Atomic writes and JSON files."""

import contextlib
import json
import os
import pathlib
import shutil

from vit_ssl_jax.errors import UserError


def cache_directory(*parts: str) -> pathlib.Path:
  """Returns a path in this package's cache, `$XDG_CACHE_HOME` or `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(root, "vit_ssl_jax", *parts).expanduser()


def write(path, text):
  """Writes a text file atomically."""
  with atomic_write(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def write_json(path, content):
  """Writes a JSON file atomically."""
  write(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
  """Reads a JSON file; a missing or invalid one is a UserError."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise UserError(f"there is no {path}") from e
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e})") from e


@contextlib.contextmanager
def atomic_write(path):
  """Yields a temporary path whose file or folder replaces `path` on success."""
  path = pathlib.Path(path)
  # Another process may be writing the same file.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    yield temporary
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    if path.is_dir():  # a folder cannot be replaced in one move
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
  """Removes a file or a folder if it exists."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
