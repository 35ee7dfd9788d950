"""A trained backbone: features and attention, from a run or from a file."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax

from vit_ssl_jax import models
from vit_ssl_jax.augment import multi_crop
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy, classifier
from vit_ssl_jax.interop import pretrained
from vit_ssl_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What makes features of images, and what is known of it.

  Attributes:
    path: where it was read from, as the user gave it.
    model: without classes.
    params: its parameters.
    data: arguments of `load.load` for the set that it was trained on.
    step: of the checkpoint, or None.
    workdir: the run's folder, or None.
  """

  path: str
  model: object
  params: dict
  data: dict
  step: int | None = None
  workdir: pathlib.Path | None = None

  def untrained(self):
    """The same network with fresh parameters."""
    fresh = models.init(self.model, jax.random.key(0))
    return dataclasses.replace(self, params=fresh)

  def apply(self, method: str | None) -> Callable:
    """Makes images (B, S, S, 3) uint8 -> what the model's `method` gives."""

    mean, std = tuple(self.data["mean"]), tuple(self.data["std"])
    return functools.partial(
      outputs, self.model, method, mean, std, self.params
    )

  def features(self, images, batch_size):
    """Images (N, S, S, 3) uint8 -> (N, D) float32."""
    return self.extract("features", images, batch_size)

  def extract(self, method, images, batch_size):
    """Images (N, S, S, 3) uint8 -> what the model's `method` gives, (N, ...).

    Without a method it is what the model itself gives.
    """
    mesh = meshes.make_mesh(1, jax.device_count())
    with jax.set_mesh(mesh):
      return accuracy.extract(
        self.apply(method),
        images,
        batch_size,
        meshes.batch_sharding(mesh),
      )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def outputs(model, method, mean, std, params, images):
  """What a model's method gives, compiled once for all of its parameters."""
  images = multi_crop.evaluation_view(images, mean, std)
  return model.apply({"params": params}, images, method=method)


def read(path, arch="", dataset="", data_dir="", image_size=0):
  """Reads a Backbone, and the set that it was trained on.

  Args:
    path: what `pretrained.read` reads.
    arch: vit, swin or cait; "" where the file says so itself.
    dataset: the set; "" where the file says so itself.
    data_dir: where TFDS keeps its sets; "" is the run's own, or the default.
    image_size: another one than it was trained at, whose positions are
      resized; 0 is the same.

  Returns:
    The Backbone, and the `load.Dataset` at its image size.

  Raises:
    UserError: it cannot be read, or nothing is known of it.
  """
  given = pretrained.read(path)
  about = given.about
  if image_size:
    about = about | {
      "model": about.get("model", {}) | {"image_size": image_size}
    }
  model, params, dataset = classifier.network(given, about, arch, dataset)
  if not dataset:
    raise UserError(f"{path} does not say what it was trained on: --dataset")
  source = classifier.own_set(about, dataset, model.image_size, data_dir)
  loaded = load.load(**source)
  source = source | {"mean": loaded.mean, "std": loaded.std}
  params = {k: x for k, x in params.items() if k != "head"}
  step = about.get("step")
  return Backbone(str(path), model, params, source, step, given.workdir), loaded
