"""The command line: flags to one stage.

  python -m main --config=configs/pretrain.py:vit,cifar10 --workdir=A
  python -m main --config=configs/finetune.py:vit,cifar10 --workdir=B \
    --config.init_from=A
"""

import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vit_ssl_jax.errors import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
  "config",
  None,
  "A recipe and its argument: configs/pretrain.py:vit,cifar10 or"
  " configs/finetune.py:vit,cifar10. Any of its values can be set with"
  " --config.KEY=VALUE.",
  lock_config=True,
)
flags.DEFINE_string(
  "workdir",
  None,
  "The run's folder. A run that was stopped goes on from its last checkpoint"
  " there when the same command is given again.",
)
flags.mark_flags_as_required(["config", "workdir"])


def run():
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  app.run(main, flags_parser=parse)


def parse(argv):
  """Parses flags, saying what is wrong with them in one sentence."""
  try:
    return FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    fail(explain(e))
  except FileNotFoundError as e:
    fail(f"there is no recipe {e.filename}: see configs/")


def explain(error):
  """One sentence for an error of the flags' parser."""
  text = " ".join(str(error).strip("'\"").split())
  key = re.search(r"--config\.([\w.]+)", " ".join(sys.argv[1:]))
  return text if not key else text


def main(argv):
  if len(argv) > 1:
    fail(f"unexpected argument {argv[1]!r}: flags look like --config.epochs=5")
  logging.set_verbosity(logging.WARNING)
  import jax

  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(cache, "vit_ssl_jax", "xla"))
  )
  from vit_ssl_jax import finetune, loop, pretrain

  stage = {"pretrain": pretrain, "finetune": finetune}[FLAGS.config.stage]
  try:
    stage.check(FLAGS.config)
    result = stage.run(FLAGS.config, FLAGS.workdir)
  except UserError as e:
    fail(str(e))
  except KeyboardInterrupt as e:
    print(e, file=sys.stderr)
    sys.exit(130)
  loop.say(str(result))


def fail(sentence):
  print(f"error: {sentence}", file=sys.stderr)
  sys.exit(2)
