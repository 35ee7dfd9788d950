"""What a run says on standard error, and how it hears that it is to stop."""

import contextlib
import signal
import sys
import threading

import jax
import tqdm


def say(text):
  """Prints a line without breaking the progress bar."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stderr)


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
    disable=jax.process_index() != 0,
  )
