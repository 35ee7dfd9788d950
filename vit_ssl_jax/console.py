"""What a run says on standard error, and how it hears that it is to stop."""

import contextlib
import signal
import sys
import threading
import time

import jax
import tqdm


def say(text):
  """Prints a line without breaking the progress bar."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stderr)


class Clock:
  """Adds up the seconds between `restart` and `pause`."""

  def __init__(self):
    self.seconds = 0.0
    self.since = None

  def restart(self):
    self.since = time.perf_counter()

  def pause(self):
    if self.since is not None:
      self.seconds += time.perf_counter() - self.since
    self.since = None

  def rate(self, count):
    """How many of `count` a second, or None where there were none."""
    return count / self.seconds if count > 0 and self.seconds else None


@contextlib.contextmanager
def stop_signals():
  """Yields an Event that SIGINT and SIGTERM set, for an orderly stop.

  A second signal stops at once.
  """
  stopping = threading.Event()

  def handle(number, _):
    stopping.set()
    signal.signal(number, old[number])

  old = {
    number: signal.signal(number, handle)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield stopping
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def progress_bar(start, stop, batch_size):
  """Images done, images a second and the time left, on standard error."""
  return tqdm.tqdm(
    total=stop * batch_size,
    initial=start * batch_size,
    unit="img",
    unit_scale=True,
    dynamic_ncols=True,
    mininterval=0.5 if sys.stderr.isatty() else 15,
  )
