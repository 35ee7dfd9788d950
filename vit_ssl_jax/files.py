"""Files that are there whole or not at all."""

import os
import pathlib


def write(path, text):
  """Writes a text file through a temporary name beside it."""
  path = pathlib.Path(path)
  # Of this process alone: another may be writing the same file.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(text)
  os.replace(temporary, path)
