"""Trains a vision transformer on a small data set, in one of two stages.

  python -m main --config=configs/pretrain.py:vit,cifar10 --workdir=A
  python -m main --config=configs/finetune.py:vit,cifar10 --workdir=B \\
    --config.init_from=A

  --config=RECIPE:ARCH,DATASET  the recipe, and what it is for; ARCH is vit,
                                swin or cait, DATASET a set's name, or
                                folder:/path or npz:/path/file.npz for images
                                of your own
  --config.KEY=VALUE            changes one of the recipe's values
  --workdir=FOLDER              the run's folder; the same command given again
                                resumes from its last checkpoint
  --distributed                 this is one of several processes, on one or on
                                many hosts, that train together: each is given
                                the same command and sees the same workdir.
                                They find each other on TPU VMs and under
                                SLURM, Open MPI and Kubernetes; elsewhere by
                                JAX_COORDINATOR_ADDRESS (HOST:PORT of the
                                first), JAX_NUM_PROCESSES and JAX_PROCESS_ID
  --help                        this text, and the recipe's keys and values
                                where --config is given

What the paper compares with, each by one value of the fine-tuning recipe:

  no --config.init_from             training from scratch
  --config.model.locality=spt+lsa   SL-ViT, SL-Swin, SL-CaiT: shifted patch
                                    tokenisation, locality self-attention
  --config.drloc.enabled=True       dense relative localisation (ViT, Swin)
"""

import importlib.util
import pathlib
import shlex
import sys

from absl import app, flags
from ml_collections import config_flags

from vit_ssl_jax import files
from vit_ssl_jax.cli import configure, exit_with_error, reporting_errors
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.recipes import schema

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "RECIPE:ARCH,DATASET")
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_boolean("distributed", False, "One of several processes.")


def run():
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  app.run(main, flags_parser=parse)


def parse(argv):
  """Parses flags, saying what is wrong with them in one sentence."""
  try:
    recipe = load_recipe(argv)
    if {"--help", "-h", "-help"} & set(argv):
      print_help(recipe)
      sys.exit(0)
    check_keys(argv, recipe)
    rest = FLAGS(argv)
    if not FLAGS.workdir:
      raise UserError("--workdir=FOLDER is missing: the run's folder")
  except (flags.Error, TypeError, ValueError) as e:
    exit_with_error(" ".join(str(e).split()))
  return rest


def load_recipe(argv):
  """The ConfigDict that --config names, before any of its values is changed.

  Raises:
    UserError: --config is missing, or names no recipe.
  """
  given = recipe_of(argv)
  if not given:
    if {"--help", "-h", "-help"} & set(argv):
      return None
    raise UserError(
      "--config is missing: for instance"
      " --config=configs/pretrain.py:vit,cifar10"
    )
  path, _, arg = given.partition(":")
  if not pathlib.Path(path).is_file():
    raise UserError(
      f"there is no recipe {path!r}: possible are configs/pretrain.py and"
      " configs/finetune.py, in the project's folder"
    )
  spec = importlib.util.spec_from_file_location("recipe", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def recipe_of(argv):
  """What --config=X or --config X says last, or ""."""
  pairs = zip(argv, [*argv[1:], ""], strict=True)
  given = [
    after if flag == "--config" else flag.removeprefix("--config=")
    for flag, after in pairs
    if flag == "--config" or flag.startswith("--config=")
  ]
  return given[-1] if given else ""


def check_keys(argv, recipe):
  """Raises a UserError for a --config.KEY that the recipe does not have."""
  for argument in argv:
    if not argument.startswith("--config."):
      continue
    key = argument.removeprefix("--config.").partition("=")[0]
    if key == "stage":
      raise UserError(
        "the stage is the recipe's: choose configs/pretrain.py or"
        " configs/finetune.py"
      )
    if key == "init_from" and recipe.stage == "pretrain":
      raise UserError(
        "pretraining always begins from scratch: init_from is for"
        " configs/finetune.py"
      )
    schema.refuse_old_names(key)
    part_of = recipe
    for part in key.split("."):
      known = list(part_of) if hasattr(part_of, "keys") else []
      if part not in known:
        hint = did_you_mean(part, known) or f": possible are {', '.join(known)}"
        raise UserError(f"unknown config key {key!r}{hint}")
      part_of = part_of[part]


def print_help(recipe):
  print(__doc__)
  if recipe is not None:
    from vit_ssl_jax import cli

    header = ("key", "value", "possible", "meaning")
    print(cli.table(header, schema.rows(recipe), left=True))


def main(argv):
  if len(argv) > 1:
    exit_with_error(
      f"unexpected argument {argv[1]!r}: flags look like --config.epochs=5"
    )
  with reporting_errors():
    configure(FLAGS.distributed)
    from vit_ssl_jax import cli, train
    from vit_ssl_jax.parallel import hosts

    with hosts.exit_on_error():
      result = train.run(FLAGS.config, FLAGS.workdir)
  if not hosts.is_primary():
    return
  shown = {k: v for k, v in result.items() if isinstance(v, int | float)}
  print(cli.table(("result", ""), shown.items()))
  for line in outlook(FLAGS.config, FLAGS.workdir):
    print(line)


def outlook(config, workdir):
  """Lines on what to do next, and on what there is to compare with."""
  from vit_ssl_jax.recipes.keys import KEYS

  if config.stage == "pretrain":
    recipe = recipe_of(sys.argv).replace("pretrain.py", "finetune.py")
    command = ["python", "-m", "main", f"--config={recipe}"]
    command += [f"--workdir={str(workdir).rstrip('/')}_finetuned"]
    command += [f"--config.init_from={workdir}"]
    # What the images and the network are is the same.
    kept = ("model.", *(name for name, key in KEYS.items() if key.data))
    kept = tuple(f"--config.{key}" for key in kept)
    command += [x for x in sys.argv if x.startswith(kept) and "=" in x]
    yield f"next: {shlex.join(command)}"
  elif config.init_from:
    for path, top1 in scratch_beside(workdir):
      yield f"from scratch: {top1:.2f} ({path})"


def scratch_beside(workdir):
  """Yields (workdir, top-1) of equal runs from scratch in the same folder."""
  from vit_ssl_jax.recipes.keys import RESUMABLE

  workdir = pathlib.Path(workdir).absolute()
  own = schema.flat(schema.read_config(workdir))
  for path in sorted(workdir.parent.glob("*/result.json")):
    try:
      other = schema.flat(schema.read_config(path.parent))
      top1 = files.read_json(path).get("top1")
    except UserError:
      continue
    differ = {k for k in own | other if own.get(k) != other.get(k)}
    differ -= {*RESUMABLE, "mean", "std"} - {"max_steps"}
    if differ == {"init_from"} and other["init_from"] == "" and top1:
      yield path.parent, top1
