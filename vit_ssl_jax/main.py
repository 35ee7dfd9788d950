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

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.recipes import keys, schema

HELP = {"--help", "-h", "-help"}
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "RECIPE:ARCH,DATASET")
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_boolean("distributed", False, "One of several processes.")


def run():
  """Runs the command line; user errors exit with status 2."""
  app.run(main, flags_parser=parse)


def parse(argv):
  """Parses flags; an error exits with one sentence."""
  try:
    if HELP & set(argv):
      print_help(load_recipe(argv) if recipe_of(argv) else None)
      sys.exit(0)
    check_keys(argv, load_recipe(argv))
    rest = FLAGS(argv)
    if not FLAGS.workdir:
      raise UserError("--workdir=FOLDER is missing: the run's folder")
  except (flags.Error, TypeError, ValueError) as e:
    cli.exit_with_error(" ".join(str(e).split()))
  return rest


def load_recipe(argv):
  """The ConfigDict of --config, before --config.KEY=VALUE change it."""
  recipe = recipe_of(argv)
  if not recipe:
    raise UserError(
      "--config is missing: for instance"
      " --config=configs/pretrain.py:vit,cifar10"
    )
  path, _, arg = recipe.partition(":")
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
  """The last value of --config=VALUE or --config VALUE, or ""."""
  values = [""]
  for flag, following in zip(argv, [*argv[1:], ""], strict=True):
    if flag == "--config":
      values.append(following)
    elif flag.startswith("--config="):
      values.append(flag.removeprefix("--config="))
  return values[-1]


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
        "pretraining always starts from scratch: init_from is for"
        " configs/finetune.py"
      )
    schema.refuse_old_names(key)
    group = recipe
    for part in key.split("."):
      known = list(group) if hasattr(group, "keys") else []
      if part not in known:
        hint = did_you_mean(part, known) or f": possible are {', '.join(known)}"
        raise UserError(f"unknown config key {key!r}{hint}")
      group = group[part]


def print_help(recipe):
  print(__doc__)
  if recipe is not None:
    header = ("key", "value", "possible", "meaning")
    print(cli.table(header, schema.rows(recipe), left=True))


def main(argv):
  if len(argv) > 1:
    cli.exit_with_error(
      f"unexpected argument {argv[1]!r}: flags look like --config.epochs=5"
    )
  with cli.reporting_errors():
    cli.configure(FLAGS.distributed)
    from vit_ssl_jax import train
    from vit_ssl_jax.parallel import hosts

    with hosts.exit_on_error():
      result = train.run(FLAGS.config, FLAGS.workdir)
  if hosts.is_primary():
    figures = {k: v for k, v in result.items() if isinstance(v, int | float)}
    print(cli.table(("result", ""), figures.items()))
    for line in outlook(FLAGS.config, FLAGS.workdir):
      print(line)


def outlook(config, workdir):
  """Yields the next command, or runs to compare with."""
  if config.stage == "pretrain":
    recipe = recipe_of(sys.argv).replace("pretrain.py", "finetune.py")
    command = ["python", "-m", "main", f"--config={recipe}"]
    command += [f"--workdir={str(workdir).rstrip('/')}_finetuned"]
    command += [f"--config.init_from={workdir}"]
    # Images and network stay the same.
    same = ["model.", *(name for name, key in keys.KEYS.items() if key.data)]
    same = tuple(f"--config.{key}" for key in same)
    command += [x for x in sys.argv if x.startswith(same) and "=" in x]
    yield f"next: {shlex.join(command)}"
  elif config.init_from:
    for path, top1 in scratch_beside(workdir):
      yield f"from scratch: {top1:.2f} ({path})"


def scratch_beside(workdir):
  """Yields (workdir, top-1) of equal runs from scratch in the same folder."""
  workdir = pathlib.Path(workdir).absolute()
  own = schema.flat(schema.read_config(workdir))
  for path in sorted(workdir.parent.glob("*/result.json")):
    try:
      other = schema.flat(schema.read_config(path.parent))
      top1 = files.read_json(path).get("top1")
    except UserError:
      continue
    differ = {k for k in own | other if own.get(k) != other.get(k)}
    differ -= {*keys.RESUMABLE, "mean", "std"} - {"max_steps"}
    if differ == {"init_from"} and other["init_from"] == "" and top1:
      yield path.parent, top1
