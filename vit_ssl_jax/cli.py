"""Shared command-line code: argument parsing, errors, progress, tables."""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import threading

import absl.logging
import jax
import numpy as np
import tqdm

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts


class Parser(argparse.ArgumentParser):
  """ArgumentParser that reports errors in one sentence."""

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
  """Exits with one sentence and a status for errors that a user can fix."""
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
      f"the device has too little memory ({reason.rstrip('.')}): try a smaller"
      " batch, in training also accumulate_steps=2 or remat=True"
    )
  except KeyboardInterrupt as e:
    print(str(e) or "interrupted", file=sys.stderr)
    sys.exit(130)


def configure(distributed=False):
  """Silences logs, caches compilations, connects processes if distributed."""
  # TensorFlow reads and writes files here, and needs no GPU.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  # Orbax raises the errors that it logs.
  absl.logging.set_verbosity(absl.logging.FATAL)
  # CPU steps run, and allocate, on the main thread (see `keep_freed_memory`).
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if distributed:
    hosts.start()
  if not jax.config.jax_compilation_cache_dir:
    folder = files.cache_directory("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  if jax.default_backend() == "cpu":
    keep_freed_memory()


def keep_freed_memory():
  """Keeps glibc from returning memory to the system between steps.

  XLA allocates a step's buffers anew on a CPU, and the system clears each page
  of them, which took a fifth of ViT's fine-tuning step. On threads other than
  the main one glibc maps such buffers separately in any case.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # not glibc
  trim_threshold, mmap_max = -1, -4
  mallopt(mmap_max, 0)
  mallopt(trim_threshold, -1)  # never


def exit_with_error(sentence):
  print(f"error: {printable(sentence)}", file=sys.stderr)
  sys.exit(2)


def printable(text):
  """Escapes line breaks and the like, which file names may contain."""
  return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)


def log(text):
  """Prints a line on standard error, above the progress bar."""
  if hosts.is_primary():
    tqdm.tqdm.write(text, file=sys.stderr)


def duration(seconds):
  """Formats seconds, for instance "12 minutes"."""
  for unit, size in (("hours", 3600), ("minutes", 60)):
    if seconds >= 1.5 * size:
      return f"{seconds / size:.{int(unit == 'hours')}f} {unit}"
  return f"{max(1, round(seconds))} seconds"


def progress_bar(
  total, unit, *, initial=0, label=None, disable=False, leave=True
):
  """A progress bar on standard error; without `leave`, only while slow."""
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
  """Yields an Event that the first SIGINT or SIGTERM sets.

  A second signal stops the program. With several processes JAX handles SIGTERM
  (`hosts.reached_preemption`): SIGINT is passed on as SIGTERM, and the Event is
  never set.
  """
  stopping = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield stopping  # only the main thread receives signals
    return
  single = hosts.single_process()
  numbers = (signal.SIGINT, signal.SIGTERM) if single else (signal.SIGINT,)

  def handle(number, _):
    signal.signal(number, old[number])
    if single:
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
  """Formats a table as text; all columns but the first are right-aligned."""
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
  """Formats None as "-" and floats with two decimals."""
  if value is None:
    return "-"
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def mean_and_spread(values):
  """Formats the mean over seeds, and the standard deviation of several."""
  spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
  return f"{np.mean(values):.2f}{spread}"
