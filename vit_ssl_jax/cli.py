"""What all commands share: how they begin, report errors, and show progress."""

import argparse
import contextlib
import ctypes
import inspect
import logging
import os
import signal
import sys
import threading
import warnings

import absl.logging
import jax
import numpy as np
import tqdm

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts


class Parser(argparse.ArgumentParser):
  """Arguments of a command; what is wrong with them is said in one sentence.

  The description is shown as it is written.
  """

  def __init__(self, description, **options):
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **options,
    )

  def error(self, message):
    exit_with_error(message)


@contextlib.contextmanager
def reporting_errors():
  """Turns what a user is to read into one sentence and an exit status."""
  try:
    yield
  except UserError as e:
    exit_with_error(str(e))
  except OSError as e:  # such as a full disk
    where = f": {e.filename}" if e.filename else ""
    exit_with_error(f"{e.strerror or e}{where}")
  except MemoryError:
    exit_with_error("there is not enough memory")
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    reason = str(e).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]
    exit_with_error(
      f"the device has too little memory ({reason.rstrip('.')}): possible are a"
      " smaller batch, in training also accumulate_steps=2 or remat=True"
    )
  except KeyboardInterrupt as e:
    print(str(e) or "interrupted", file=sys.stderr)
    sys.exit(130)


def configure(distributed=False):
  """Quietens libraries, and keeps what JAX compiles and a CPU's memory.

  Args:
    distributed: whether this is one process of several, see `hosts.start`.
  """
  # TensorFlow only reads and writes here, and has no GPU to miss.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  # What Orbax logs as an error it also raises.
  absl.logging.set_verbosity(absl.logging.FATAL)
  # Where a checkpoint is damaged, each of Orbax's tasks would say so.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  sys.unraisablehook = without_late_tasks
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  # On a CPU alone, and read when JAX starts: steps run, and allocate, on the
  # main thread (see `keep_freed_memory`), which would only wait for them.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if distributed:
    hosts.start()
  if not jax.config.jax_compilation_cache_dir:
    folder = files.cache_directory("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  if jax.default_backend() == "cpu":
    keep_freed_memory()


def without_late_tasks(unraisable):
  """Python's hook, but for what reaches Orbax's tasks once they have failed."""
  late = "Event loop is closed" in str(unraisable.exc_value)
  if not (late or inspect.iscoroutine(unraisable.object)):
    sys.__unraisablehook__(unraisable)


def keep_freed_memory():
  """Tells glibc not to hand memory back to the system between steps.

  XLA allocates a step's buffers anew on a CPU, and the system would clear each
  page of them at every step, which took a fifth of ViT's fine-tuning step.
  This helps on the main thread alone: in the arenas of others glibc has no room
  for such buffers, and maps each apart whatever it is told.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # not glibc
  trim_threshold, mmap_max = -1, -4
  mallopt(mmap_max, 0)  # what is mapped apart is unmapped when freed
  mallopt(trim_threshold, -1)  # never


def exit_with_error(sentence):
  print(f"error: {printable(sentence)}", file=sys.stderr)
  sys.exit(2)


def printable(text):
  """A text on one line: names of files may have line breaks in them."""
  return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)


def log(text):
  """Prints a line on standard error without breaking the progress bar."""
  if hosts.is_primary():
    tqdm.tqdm.write(text, file=sys.stderr)


def duration(seconds):
  """A time in words, such as "12 minutes"."""
  for unit, size in (("hours", 3600), ("minutes", 60)):
    if seconds >= 1.5 * size:
      return f"{seconds / size:.{int(unit == 'hours')}f} {unit}"
  return f"{max(1, round(seconds))} seconds"


def progress_bar(
  total, unit, *, initial=0, label=None, disable=False, leave=True
):
  """A bar with rate and ETA; without `leave`, a brief one for slow work."""
  seconds = 0.5 if sys.stderr.isatty() else 15
  return tqdm.tqdm(
    total=total,
    initial=initial,
    desc=label,
    unit=unit,
    unit_scale=True,
    dynamic_ncols=True,
    mininterval=seconds,
    delay=0 if leave else seconds,
    leave=leave,
    disable=disable,
  )


@contextlib.contextmanager
def stop_signals():
  """Yields an Event that SIGINT and SIGTERM set, for an orderly stop.

  A second signal stops at once. A thread that is not the main one hears none.
  Of several processes JAX itself hears SIGTERM and tells all
  (`hosts.reached_preemption`), so that SIGINT is passed on as SIGTERM, and the
  Event is never set.
  """
  stopping = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield stopping  # signals are the main thread's
    return
  alone = hosts.single_process()
  numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)

  def handle(number, _):
    signal.signal(number, old[number])
    if alone:
      stopping.set()
    else:
      signal.raise_signal(signal.SIGTERM)

  old = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield stopping
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def table(header, rows, left=False):
  """Lays out a table in columns.

  Args:
    header: the columns' titles.
    rows: sequences of as many cells; None shows as "-", floats with two
      decimals.
    left: whether all columns begin at the left, as text does.

  Returns:
    The table as text, numbers to the right, without a last line break.
  """
  lines = [list(header), *([cell(x) for x in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  align = str.ljust if left else str.rjust
  rows = (
    [first.ljust(widths[0]), *map(align, others, widths[1:])]
    for first, *others in lines
  )
  return "\n".join("  ".join(row).rstrip() for row in rows)


def cell(value):
  if value is None:
    return "-"
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def mean_and_spread(values):
  """The mean over seeds, and their standard deviation where there are more."""
  spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
  return f"{np.mean(values):.2f}{spread}"
