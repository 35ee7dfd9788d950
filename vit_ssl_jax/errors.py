"""The one exception that a user is meant to read."""


class UserError(ValueError):
  """Something given to the program is wrong.

  The message is one sentence: what was given, and what is possible. Commands
  print it without a traceback and exit with status 2.
  """
