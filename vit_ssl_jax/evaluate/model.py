"""Trained networks, from runs or files, and their outputs for images."""

import dataclasses
import functools
import pathlib

import jax
import ml_collections
import numpy as np

from vit_ssl_jax import cli, models
from vit_ssl_jax.data import load, registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy
from vit_ssl_jax.interop import pretrained
from vit_ssl_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network; a backbone, or with a head a classifier."""

  path: str  # where it was read from, as the user gave it
  model: object  # of `models.build`; num_classes is 0 for a backbone
  params: dict
  data: dict  # arguments of `load.load` for the set that it was trained on
  # Names in the order of the logits; numbers if the set has none.
  classes: tuple[str, ...] = ()
  step: int | None = None  # of the checkpoint
  workdir: pathlib.Path | None = None  # the run's folder

  def untrained(self):
    """The same network with fresh parameters."""
    params = models.init(self.model, jax.random.key(0))
    return dataclasses.replace(self, params=params)

  def logits(self, images, batch_size):
    """Computes logits (N, C) float32 of images (N, S, S, 3) uint8."""
    return self.outputs(None, images, batch_size)

  def features(self, images, batch_size):
    """Computes features (N, D) float32 of images (N, S, S, 3) uint8."""
    return self.outputs("features", images, batch_size)

  def attention(self, images, batch_size):
    """Computes attention maps of the last block, (N, heads, rows, columns)."""
    starts = range(0, len(images), batch_size)  # the weights are large
    batches = [images[i : i + batch_size] for i in starts]
    weights = (self.outputs("attention", x, batch_size) for x in batches)
    return np.concatenate([models.attention_maps(x) for x in weights])

  @functools.cached_property
  def placed(self):
    """A mesh of all devices, and the parameters on it."""
    mesh = meshes.make_mesh(1, jax.device_count())
    sharding = meshes.state_sharding(mesh, self.params)
    return mesh, jax.device_put(self.params, sharding)

  def outputs(self, method, images, batch_size):
    """Applies a method of the model, sharded over all devices."""
    mesh, params = self.placed
    mean, std = tuple(self.data["mean"]), tuple(self.data["std"])
    with jax.set_mesh(mesh):
      function = functools.partial(
        *(forward, self.model, mean, std, method), params
      )
      shards = meshes.batch_sharding(mesh)
      return accuracy.extract(function, images, batch_size, shards)

  def load_data(self):
    """Loads the `load.Dataset` that it was trained on.

    Raises:
      UserError: the set is unknown, or cannot be loaded.
    """
    if not self.data["name"]:
      raise UserError(f"{self.path} does not name its data set: give --dataset")
    return load.load(**self.data)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward(model, mean, std, method, params, images):
  """Compiled once for all parameters of a model."""
  return accuracy.make_predict(model, mean, std, method)(params, images)


def add_arguments(parser, batch_size):
  """Adds the options that name a network, and --batch_size."""
  option = functools.partial(parser.add_argument, default="")
  option("--workdir", help="a run, or its WORKDIR/checkpoints/STEP")
  option("--init_from", metavar="FILE", help="weights, instead of --workdir")
  known = tuple(models.ARCHITECTURES)
  option("--arch", choices=known, help="of a FILE that does not name it")
  option("--dataset", help="of a FILE that does not name it, or if it moved")
  option(
    "--data_dir",
    metavar="FOLDER",
    help="where TFDS keeps its sets; default: the run's own, else"
    " $TFDS_DATA_DIR or TFDS's default",
  )
  size = {"type": int, "default": batch_size, "metavar": "B"}
  option("--batch_size", help="images at a time; default: %(default)s", **size)


def from_arguments(args, image_size=0):
  """Reads the Network that the options of `add_arguments` name.

  Raises:
    UserError: they name none or two, or it cannot be read.
  """
  if args.batch_size < 1:
    raise UserError(f"--batch_size={args.batch_size} must be at least 1")
  if bool(args.workdir) == bool(args.init_from):
    raise UserError("give either --workdir=B or --init_from=FILE")
  if args.workdir and (args.arch or args.dataset):
    raise UserError(
      "--arch and --dataset go with --init_from: a run knows both itself"
    )
  path = args.workdir or args.init_from
  network = read(path, args.arch, args.dataset, args.data_dir, image_size)
  if args.workdir and network.workdir is None:
    raise UserError(
      f"--workdir={path} is not a workdir: did you mean --init_from?"
    )
  return network


def check_classifier(network):
  """Raises a UserError unless a network is a classifier of known classes."""
  path, outputs = network.path, network.model.num_classes
  if not outputs:
    raise UserError(
      f"{path} is a backbone and has no classes: give a fine-tuned network"
      " (configs/finetune.py)"
    )
  if len(network.classes) != outputs:
    raise UserError(
      f"the head of {path} has {outputs} classes, but its data set has"
      f" {len(network.classes)}"
    )


def read(path, arch="", dataset="", data_dir="", image_size=0):
  """Reads a Network.

  Args:
    path: whatever `pretrained.read` reads.
    arch: vit, swin or cait; "" where the file names it.
    dataset: the set it was trained on; "" where the file names it.
    data_dir: where TFDS keeps its sets; "" is the run's own, or the default.
    image_size: to which positions are resized; 0 is its own.

  Raises:
    UserError: it cannot be read, or is incompletely described.
  """
  weights = pretrained.read(path)
  about = weights.about
  if image_size:
    sizes = about.get("model", {}) | {"image_size": image_size}
    about = about | {"model": sizes}
  if not weights.architecture:
    known = ", ".join(models.ARCHITECTURES)
    raise UserError(f"{path} holds no weights of any of {known}")
  arch, dataset = identify(path, about, arch, dataset)
  backbone = build(arch, about, dataset)
  params, lines = pretrained.fit(weights, backbone, path)
  for line in lines:
    cli.log(line)
  network = Network(
    str(path),
    backbone.clone(num_classes=weights.num_classes),
    params,
    data_arguments(about, dataset, backbone.image_size, data_dir),
    tuple(about.get("classes") or ()),
    about.get("step"),
    weights.workdir,
  )
  return complete(network)


def identify(path, about, arch, dataset):
  """Returns architecture and data set; the set is "" if nothing needs it."""
  named = about.get("architecture", "")
  if arch and named and arch != named:
    raise UserError(f"--arch={arch}: {path} is a {named}")
  arch, dataset = arch or named, dataset or about.get("dataset", "")
  enough = all(about.get(key) for key in ("classes", "mean", "std"))
  if arch not in models.ARCHITECTURES or not (dataset or enough):
    raise UserError(
      f"{path} does not describe itself: give --arch (one of"
      f" {', '.join(models.ARCHITECTURES)}) and --dataset (such as cifar10)"
    )
  return arch, dataset


def build(arch, about, dataset):
  """Builds the backbone; sizes that the weights do not name are the paper's."""
  entry = entry_of(dataset)
  sizes = {
    "image_size": entry.image_size,
    "patch_size": models.ARCHITECTURES[arch].patch_sizes[entry.image_size],
  }
  sizes |= about.get("model", {}) | {"name": arch}
  sizes.pop("num_classes", None)
  dtype = about.get("config", {}).get("dtype", "auto")
  config = ml_collections.ConfigDict({"model": sizes, "dtype": dtype})
  return models.from_config(config, num_classes=0)


def entry_of(dataset):
  """A set's entry in the registry; that of a custom set for ""."""
  return registry.get(dataset) if dataset else registry.OWN


def data_arguments(about, dataset, image_size, data_dir):
  """Arguments of `load.load` for the set that weights were trained on."""
  config = about.get("config", {})
  arguments = {"resize": entry_of(dataset).resize}
  arguments |= {key: config[key] for key in load.KEYS if key in config}
  return arguments | {
    "name": dataset,
    "image_size": image_size,
    "data_dir": data_dir or config.get("data_dir") or None,
    "seed": config.get("split_seed", 0),
    "mean": about.get("mean") or (),
    "std": about.get("std") or (),
  }


def complete(network):
  """Adds classes, mean and std that weights do not name, from the data set."""
  data, classes = network.data, network.classes
  labelled = classes or not network.model.num_classes
  if data["mean"] and data["std"] and labelled:
    return network
  dataset = network.load_data()
  return dataclasses.replace(
    network,
    data=data | {"mean": dataset.mean, "std": dataset.std},
    classes=classes or tuple(dataset.classes),
  )
