"""A trained classifier, from a run or from a file."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import ml_collections

from configs import finetune as recipe
from vit_ssl_jax import (
  console,
  data,
  finetune,
  models,
  pretrained,
  sharding,
)
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import programs


@dataclasses.dataclass(frozen=True)
class Classifier:
  """What tells the classes of images.

  Attributes:
    path: where it is from, as it was given.
    config: the run's, or the recipe's where nothing is known of the run: what
      data it is for, and how they are read.
    about: what is known of it, of `pretrained.ABOUT`.
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
  if not given.num_classes:
    raise UserError(
      f"{path} is a {given.about.get('part', 'backbone')} and knows no classes:"
      " give what was fine-tuned (configs/finetune.py)"
    )
  config = config_of(path, given.about, arch, dataset, data_dir)
  backbone = models.from_config(config, 0)
  params, lines = pretrained.fit(given, backbone, str(path))
  for line in lines:
    console.say(line)
  about, config = with_statistics(given.about, config)
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
  about = pretrained.from_text(program.metadata)
  if not about:
    raise UserError(f"{path} says nothing of itself: it was not exported here")
  if not about["model"]["num_classes"]:
    raise UserError(f"{path} knows no classes: it gives features")
  config = config_of(path, about, arch, dataset, data_dir)
  mesh = sharding.one_device_mesh()
  classes = about["model"]["num_classes"]
  about, config = with_statistics(about, config)
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
  arch = arch or known
  if not arch or not (dataset or about.get("dataset")):
    raise UserError(
      f"{path} does not say what it is: give --arch (of"
      f" {', '.join(models.ARCHITECTURES)}) and --dataset (such as cifar10)"
    )
  try:
    config = recipe.get_config(f"{arch},{dataset or about['dataset']}")
  except ValueError as e:
    raise UserError(str(e).replace("the config's argument", "it")) from e
  with config.ignore_type():  # lists, where it is from JSON
    if about.get("config"):
      # Older runs lack this key; they gave the aspect up.
      config = ml_collections.ConfigDict({"resize": "squash"} | about["config"])
    elif "model" in about:
      config.model.update(about["model"])
      del config.model.num_classes
    if dataset:
      config.dataset = dataset
    config.data_dir = data_dir or config.get("data_dir", "")
    for key in ("mean", "std"):
      if about.get(key):
        config[key] = about[key]
  return config


def with_statistics(about, config):
  """Both, with classes, mean and std from the data set where they lack."""
  if "classes" in about and config.mean and config.std:
    return about, config
  dataset = data.load(
    config.dataset,
    config.model.image_size,
    data_dir=config.data_dir or None,
    seed=config.get("split_seed", config.seed),
    mean=config.mean,
    std=config.std,
  )
  with config.ignore_type():
    config.update(mean=dataset.mean, std=dataset.std)
  return {"classes": dataset.classes} | about, config
