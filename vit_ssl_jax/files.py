"""Files that are there whole or not at all."""

import os
import pathlib


def write(path, text):
  """Writes a text file through a temporary name beside it."""
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)
