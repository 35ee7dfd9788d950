"""A trained classifier, from a run or from a file."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from vit_ssl_jax import cli, models
from vit_ssl_jax.data import load, registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy
from vit_ssl_jax.interop import metadata, pretrained, programs
from vit_ssl_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A function that classifies images, and what is known of it.

  Attributes:
    path: where it was read from, as the user gave it.
    predict: images (B, S, S, 3) uint8 -> (B, C) logits.
    classes: their C names in the order of the logits, which are numbers where
      the data set has no names.
    data: arguments of `load.load` for the set it was trained on: name,
      image_size (S), resize, mean, std, data_dir and more.
    sharding: how predict takes a batch.
    step: of the checkpoint, or None.
    workdir: the run's folder, or None.
  """

  path: str
  predict: Callable
  classes: tuple[str, ...]
  data: dict
  sharding: jax.sharding.Sharding
  step: int | None = None
  workdir: pathlib.Path | None = None


def add_classifier(parser, batch_size):
  """Adds the options that name a classifier, and --batch_size."""
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
    choices=tuple(models.ARCHITECTURES),
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
  parser.add_argument(
    "--batch_size",
    type=int,
    default=batch_size,
    metavar="B",
    help="images at a time; %(default)s if left out",
  )


def read_classifier(args):
  """The Classifier that the arguments of a command name.

  Raises:
    UserError: they name none, or what they name is none.
  """
  check_source(args)
  path = args.workdir or args.init_from
  found = read(path, args.arch, args.dataset, args.data_dir)
  if args.workdir and found.workdir is None:
    raise UserError(
      f"--workdir={path} is no workdir: did you mean --init_from?"
    )
  return found


def check_source(args):
  """Raises a UserError where a command's arguments name no model, or two."""
  if args.batch_size < 1:
    raise UserError(f"--batch_size={args.batch_size} has to be at least 1")
  if bool(args.workdir) == bool(args.init_from):
    raise UserError("give either --workdir=B or --init_from=FILE")
  if args.workdir and (args.arch or args.dataset):
    raise UserError(
      "--arch and --dataset go with --init_from: a run knows both itself"
    )


def read(path, arch="", dataset="", data_dir=""):
  """Reads a Classifier.

  Args:
    path: a program of `interop.programs`, or what `pretrained.read` reads.
    arch: vit, swin or cait; "" where the file says so itself.
    dataset: the set it was trained on; "" where the file says so itself.
    data_dir: where TFDS keeps its sets; "" is the run's own, or the default.

  Raises:
    UserError: it cannot be read, has no classes, or nothing is known of it.
  """
  if pathlib.Path(path).is_file() and programs.is_program(path):
    return of_program(path, arch, dataset, data_dir)
  given = pretrained.read(path)
  about, num_classes = given.about, given.num_classes
  if given.architecture and not num_classes:
    raise UserError(
      f"{path} is a {about.get('part', 'backbone')} and knows no classes:"
      " give what was fine-tuned (configs/finetune.py)"
    )
  backbone, params, dataset = network(given, about, arch, dataset)
  source = own_set(about, dataset, backbone.image_size, data_dir)
  classes, source = complete(path, about, num_classes, source)
  mesh = meshes.make_mesh(1, jax.device_count())
  params = jax.device_put(params, meshes.state_sharding(mesh, params))
  model = backbone.clone(num_classes=num_classes)
  logits = jax.jit(accuracy.make_predict(model, source["mean"], source["std"]))

  def call(images):
    with jax.set_mesh(mesh):
      return logits(params, images)

  return Classifier(
    str(path),
    call,
    classes,
    source,
    meshes.batch_sharding(mesh),
    about.get("step"),
    given.workdir,
  )


def network(given, about, arch, dataset):
  """The model of weights, without classes; its parameters; its set's name.

  Args:
    given: a `Pretrained`.
    about: what is known of it, which may differ from what it says.
    arch, dataset: of `read`.

  Raises:
    UserError: it is of no architecture, or does not fit, or nothing is known
      of it.
  """
  path = given.path
  if not given.architecture:
    known = ", ".join(models.ARCHITECTURES)
    raise UserError(f"{path} holds no weights of any of {known}")
  arch, dataset = identify(path, about, arch, dataset)
  model = build(arch, about, dataset)
  params, lines = pretrained.fit(given, model, path)
  for line in lines:
    cli.log(line)
  return model, params, dataset


def of_program(path, arch, dataset, data_dir):
  """The Classifier of an exported program, on one device."""
  program = programs.read(path)
  about = metadata.from_text(program.metadata, path)
  metadata.check(about, program.num_outputs, path)
  if not about.get("model", {}).get("num_classes"):
    raise UserError(f"{path} knows no classes, or does not say so")
  _, dataset = identify(path, about, arch, dataset)
  source = own_set(about, dataset, program.image_size, data_dir)
  classes, source = complete(path, about, program.num_outputs, source)
  return Classifier(
    str(path),
    # Of probabilities, of which the logarithms are as good as logits.
    lambda images: jnp.log(program.call(images)),
    classes,
    source,
    meshes.batch_sharding(meshes.one_device_mesh()),
    about.get("step"),
  )


def identify(path, about, arch, dataset):
  """The architecture, and the set it was trained on: given, or as it says.

  The set is "" where it is unknown and not needed.
  """
  known = about.get("architecture", "")
  if arch and known and arch != known:
    raise UserError(f"--arch={arch}: {path} is a {known}")
  arch, dataset = arch or known, dataset or about.get("dataset", "")
  enough = all(about.get(key) for key in ("classes", "mean", "std"))
  if arch not in models.ARCHITECTURES or not (dataset or enough):
    raise UserError(
      f"{path} does not say what it is: give --arch (of"
      f" {', '.join(models.ARCHITECTURES)}) and --dataset (such as cifar10)"
    )
  return arch, dataset


def build(arch, about, dataset):
  """The model of weights, without classes.

  Sizes that the weights do not tell are the paper's: the architecture's
  defaults, and the image size and patch size for such a set.
  """
  known = known_of(dataset)
  patch_size = known.patch_size_of(arch)
  sizes = {"image_size": known.image_size, "patch_size": patch_size}
  sizes |= about.get("model", {}) | {"name": arch}
  sizes.pop("num_classes", None)
  dtype = about.get("config", {}).get("dtype", "auto")
  config = ml_collections.ConfigDict({"model": sizes, "dtype": dtype})
  return models.from_config(config, num_classes=0)


def known_of(dataset):
  """A set's entry in the registry, where "" is one of a user's own."""
  return registry.get(dataset) if dataset else registry.OWN


def own_set(about, dataset, image_size, data_dir):
  """Arguments of `load.load` for the set that a classifier was trained on."""
  config = about.get("config", {})
  # Before there was config.resize, runs squashed.
  resize = "squash" if config else known_of(dataset).resize
  return {key: config[key] for key in load.KEYS if key in config} | {
    "name": dataset,
    "image_size": image_size,
    "data_dir": data_dir or config.get("data_dir") or None,
    "resize": config.get("resize", resize),
    "seed": config.get("split_seed", config.get("seed", 0)),
    "mean": about.get("mean") or (),
    "std": about.get("std") or (),
  }


def complete(path, about, num_classes, source):
  """The names of the classes, and `source` with mean and std.

  The set is loaded only where one of them is unknown.
  """
  classes = about.get("classes")
  if not (classes and source["mean"] and source["std"]):
    dataset = load.load(**source)
    if len(dataset.classes) != num_classes:
      raise UserError(
        f"the head of {path} has {num_classes} classes, and {dataset.name}"
        f" {len(dataset.classes)}"
      )
    classes = classes or dataset.classes
    source = source | {"mean": dataset.mean, "std": dataset.std}
  return tuple(classes), source
