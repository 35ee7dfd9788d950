"""User-facing errors."""

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


def did_you_mean(value, choices):
  """ ": did you mean 'x'?" of the closest choice, or "" if none is close."""
  near = difflib.get_close_matches(str(value), choices, 1)
  return f": did you mean {near[0]!r}?" if near else ""
