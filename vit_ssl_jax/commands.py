"""What all commands share: how they begin, and how they say what is wrong."""

import argparse
import contextlib
import ctypes
import logging
import sys

import absl.logging

from vit_ssl_jax.errors import UserError


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
    fail(message)


def add_classifier(parser):
  """Adds the options that name a classifier."""
  parser.add_argument(
    "--workdir",
    default="",
    help="a fine-tuning run's folder, of which the newest checkpoint is taken,"
    " or one of its checkpoints, WORKDIR/checkpoints/STEP",
  )
  parser.add_argument(
    "--init_from",
    default="",
    metavar="FILE",
    help="a file or folder with a classifier's weights, instead of --workdir",
  )
  parser.add_argument(
    "--arch",
    default="",
    choices=["vit", "swin", "cait"],
    help="the architecture of a FILE that does not say it",
  )
  parser.add_argument(
    "--dataset",
    default="",
    help="the set that FILE was trained on, where it does not say it or where"
    " the set now lies elsewhere",
  )
  parser.add_argument(
    "--data_dir",
    default="",
    metavar="FOLDER",
    help="where TFDS keeps its sets; if left out the run's own, or else"
    " $TFDS_DATA_DIR or its default",
  )


def read_classifier(args):
  """The `classifiers.Classifier` that the arguments name.

  Raises:
    UserError: they name none, or what they name is none.
  """
  from vit_ssl_jax import classifiers

  if bool(args.workdir) == bool(args.init_from):
    raise UserError("give either --workdir=B or --init_from=FILE")
  if args.workdir and (args.arch or args.dataset):
    raise UserError(
      "--arch and --dataset go with --init_from: a run knows both itself"
    )
  path = args.workdir or args.init_from
  found = classifiers.read(path, args.arch, args.dataset, args.data_dir)
  if args.workdir and found.workdir is None:
    raise UserError(
      f"--workdir={path} is no workdir: did you mean --init_from?"
    )
  return found


@contextlib.contextmanager
def reporting_errors():
  """Turns what a user is to read into one sentence and an exit status."""
  try:
    yield
  except UserError as e:
    fail(str(e))
  except KeyboardInterrupt as e:
    print(str(e) or "interrupted", file=sys.stderr)
    sys.exit(130)


def set_up(distributed=False):
  """Quietens libraries, and keeps what JAX compiles and a CPU's memory.

  Args:
    distributed: whether this is one process of several, see `hosts.start`.
  """
  absl.logging.set_verbosity(absl.logging.ERROR)
  # Where a checkpoint is damaged, each of Orbax's tasks would say so.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  import jax

  from vit_ssl_jax import hosts
  from vit_ssl_jax.data import cache

  # On a CPU alone, and read when JAX starts: steps run, and allocate, on the
  # main thread (see `keep_freed_memory`), which would only wait for them.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if distributed:
    hosts.start()
  if not jax.config.jax_compilation_cache_dir:
    folder = cache.directory("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  if jax.default_backend() == "cpu":
    keep_freed_memory()


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


def fail(sentence):
  print(f"error: {sentence}", file=sys.stderr)
  sys.exit(2)
