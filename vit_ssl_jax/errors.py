"""User-facing errors."""

import contextlib
import difflib


class UserError(ValueError):
  """An error that the user can fix.

  The message is one sentence: what was given, and what is possible. Commands
  print it without a traceback and exit with status 2.
  """


def line(error):
  """The text of an error in one line of at most 300 characters."""
  text = " ".join(str(error).split()).rstrip(".")
  return text[:300] or type(error).__name__


@contextlib.contextmanager
def reading(path=""):
  """Turns an OSError into a sentence that names its file, or else `path`."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{error.filename or path} cannot be read: {error.strerror or error}"
    ) from error


def did_you_mean(value, choices):
  """ ": did you mean 'x'?" of the closest choice, or "" if none is close."""
  near = difflib.get_close_matches(str(value), choices, 1)
  return f": did you mean {near[0]!r}?" if near else ""
