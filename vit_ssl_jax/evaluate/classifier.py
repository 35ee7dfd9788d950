"""A trained classifier, from a run or from a file."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import ml_collections
from flax import traverse_util

from configs import common, finetune as recipe
from vit_ssl_jax import cli, models
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import load
from vit_ssl_jax.interop import (
  metadata as provenance,
  pretrained,
  programs,
  recognise,
)
from vit_ssl_jax.parallel import mesh as sharding
from vit_ssl_jax.run import schema as checks
from vit_ssl_jax.train import finetune


@dataclasses.dataclass(frozen=True)
class Classifier:
  """What tells the classes of images.

  Attributes:
    path: where it is from, as it was given.
    config: the run's, or the recipe's where nothing is known of the run: what
      data it is for, and how they are read.
    about: what is known of it, of `provenance.KEYS`.
    num_classes: C.
    predict: images (B, S, S, 3) uint8 -> (B, C) logits or probabilities.
    mesh: the devices it runs on.
    workdir: the run's folder, or None.
    gives_probabilities: whether predict does, as programs do.
  """

  path: str
  config: ml_collections.ConfigDict
  about: dict
  num_classes: int
  predict: Callable
  mesh: jax.sharding.Mesh
  workdir: pathlib.Path | None = None
  gives_probabilities: bool = False

  @property
  def classes(self):
    """The classes in the order of the logits; numbers where none are known."""
    numbers = [str(i) for i in range(self.num_classes)]
    return tuple(self.about.get("classes") or numbers)


def read(path, arch="", dataset="", data_dir=""):
  """Reads a classifier.

  Args:
    path: as of `pretrained.read`, or a program of `interop.programs`.
    arch: vit, swin or cait; "" where the file says so itself.
    dataset: the set it was trained on; "" where the file says so itself.
    data_dir: where TFDS keeps its sets; "" is the run's own, or the default.

  Raises:
    UserError: it cannot be read, has no classes, or nothing is known of it.
  """
  if pathlib.Path(path).is_file() and programs.is_program(path):
    return of_program(path, arch, dataset, data_dir)
  given = pretrained.read(path)
  if not recognise.architecture(
    traverse_util.flatten_dict(given.arrays, sep="/")
  ):
    raise UserError(f"{path} holds no weights of a vit, swin or cait")
  if not given.num_classes:
    raise UserError(
      f"{path} is a {given.about.get('part', 'backbone')} and knows no classes:"
      " give what was fine-tuned (configs/finetune.py)"
    )
  config = config_of(path, given.about, arch, dataset, data_dir)
  backbone = models.from_config(config, 0)
  params, lines = pretrained.fit(given, backbone, str(path))
  for line in lines:
    cli.say(line)
  about = with_statistics(path, given.about, config, given.num_classes)
  mesh = sharding.make_mesh(1, jax.device_count())
  model = models.from_config(config, given.num_classes)
  params = jax.device_put(params, sharding.state_sharding(mesh, params))
  logits = jax.jit(finetune.make_predict(model, config.mean, config.std))
  return Classifier(
    str(path),
    config,
    about,
    given.num_classes,
    lambda images: logits(params, images),
    mesh,
    given.workdir,
  )


def of_program(path, arch, dataset, data_dir):
  """The classifier of a program, on one device."""
  program = programs.read(path)
  about = provenance.from_text(program.metadata, path)
  classes = program.num_outputs
  provenance.check(about, classes, path)
  if not about.get("model", {}).get("num_classes"):
    raise UserError(f"{path} knows no classes, or does not say so")
  config = config_of(path, about, arch, dataset, data_dir)
  mesh = sharding.one_device_mesh()
  about = with_statistics(path, about, config, classes)
  return Classifier(
    str(path),
    config,
    about,
    classes,
    program.call,
    mesh,
    gives_probabilities=True,
  )


def config_of(path, about, arch, dataset, data_dir):
  """The config of the run that made weights, or of the recipe.

  Args:
    path: where they are from, for messages.
    about: what is known of them.
    arch, dataset, data_dir: as of `read`.

  Raises:
    UserError: arch or dataset is missing, unknown, or another one than theirs.
  """
  known = about.get("architecture", "")
  if arch and known and arch != known:
    raise UserError(f"--arch={arch}: {path} is a {known}")
  if dataset and not (
    dataset in common.IMAGE_SIZE or dataset.startswith(common.OWN)
  ):
    raise UserError(
      f"--dataset={dataset} is unknown: possible are"
      f" {', '.join(common.IMAGE_SIZE)}, folder:/path and npz:/path/file.npz"
    )
  arch = arch or known
  whole = all(about.get(key) for key in ("classes", "mean", "std"))
  dataset = dataset or about.get("dataset", "")
  if arch not in models.ARCHITECTURES or not (dataset or whole):
    raise UserError(
      f"{path} does not say what it is: give --arch (of"
      f" {', '.join(models.ARCHITECTURES)}) and --dataset (such as cifar10)"
    )
  if about.get("config"):
    # Older runs lack some keys; this is what they did.
    older = {"resize": "squash", "split_seed": about["config"].get("seed", 0)}
    config = ml_collections.ConfigDict(
      recipe.get_config(arch).to_dict() | older | about["config"]
    )
  else:
    config = recipe.get_config(f"{arch},{dataset or 'cifar10'}")
    sizes = about.get("model", {})
    config.model.update({k: v for k, v in sizes.items() if k in config.model})
  checks.choice(config, "dtype", ["auto", "float32", "bfloat16"])
  with config.ignore_type():  # lists, where it is from JSON
    config.dataset = dataset
    config.data_dir = data_dir or config.data_dir
    for key in ("mean", "std"):
      config[key] = about.get(key) or config[key]
  return config


def with_statistics(path, about, config, num_classes):
  """What is known of a classifier, with classes from its data set.

  Mean and std are put into the config, where it has none. The set is read
  where anything lacks.

  Raises:
    UserError: the set has another number of classes.
  """
  if about.get("classes") and config.mean and config.std:
    return about
  dataset = load.load(
    config.dataset,
    config.model.image_size,
    data_dir=config.data_dir or None,
    seed=config.split_seed,
    mean=config.mean,
    std=config.std,
  )
  if len(dataset.classes) != num_classes:
    raise UserError(
      f"the head of {path} has {num_classes} classes, and {dataset.name}"
      f" {len(dataset.classes)}"
    )
  with config.ignore_type():
    config.update(mean=dataset.mean, std=dataset.std)
  return about | {"classes": about.get("classes") or dataset.classes}


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
  if bool(args.workdir) == bool(args.init_from):
    raise UserError("give either --workdir=B or --init_from=FILE")
  if args.workdir and (args.arch or args.dataset):
    raise UserError(
      "--arch and --dataset go with --init_from: a run knows both itself"
    )
  path = args.workdir or args.init_from
  found = read(path, args.arch, args.dataset, args.data_dir)
  if args.workdir and found.workdir is None:
    raise UserError(
      f"--workdir={path} is no workdir: did you mean --init_from?"
    )
  return found
