"""What a user is meant to read where something went wrong."""


class UserError(ValueError):
  """Something given to the program is wrong.

  The message is one sentence: what was given, and what is possible. Commands
  print it without a traceback and exit with status 2.
  """


def line(error):
  """An error's text in one line of at most 300 characters."""
  text = " ".join(str(error).split()).rstrip(".")
  return text[:300] or type(error).__name__
