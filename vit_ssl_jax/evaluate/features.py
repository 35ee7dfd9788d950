"""The suites that look at features and attention, not at a classifier."""

import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import cli, files, models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import backbone as backbones, pictures, probes

KINDS = (*probes.KINDS, "attention", "features")
SHOWN = 8  # images in the picture of attention
MOST = 2000  # images in the picture of features


def read(args, path):
  """The `Backbone` and the set that a command's arguments name."""
  if args.image_size < 0:
    raise UserError(f"--image_size={args.image_size} has to be at least 1")
  return backbones.read(
    path, args.arch, args.dataset, args.data_dir, args.image_size
  )


def evaluate(name, backbone, dataset, args, out):
  """One suite's figures, or where its picture is.

  Args:
    name: of `KINDS`.
    backbone, dataset: of `read`.
    args: of the command.
    out: the folder for pictures.
  """
  if name in probes.KINDS:
    return probes.probe(name, backbone, dataset, args.batch_size)
  out.mkdir(parents=True, exist_ok=True)
  path = out / f"{name}.png"
  if name == "attention":
    shown = {"mean": backbone}
    if args.beside:
      other, _ = read(args, args.beside)
      shown = {x.path: x for x in (other, backbone)}
    draw_attention(path, shown, dataset)
  else:
    draw_features(path, backbone, dataset, args.batch_size)
  cli.log(f"{name}: {path}")
  return {"picture": str(path)}


def draw_attention(path, shown, dataset):
  """Draws test images of different classes, and where backbones look."""
  labels = np.asarray(dataset.test_labels)
  _, first = np.unique(labels, return_index=True)
  images = np.asarray(dataset.test_images[first[:SHOWN]])
  maps = {
    title: models.attention_maps(x.apply("attention")(jnp.asarray(images)))
    for title, x in shown.items()
  }
  with files.atomic_write(path) as temporary:
    fig = pictures.draw_attention(images, maps, heads=len(shown) == 1)
    fig.savefig(temporary, dpi=120, format="png")


def draw_features(path, backbone, dataset, batch_size):
  """Draws where test images lie, and what lies beside some of them."""
  count = len(dataset.test_labels)
  if count < 10:
    raise UserError(f"--suite=features needs 10 test images, not {count}")
  some = np.random.default_rng(0).permutation(count)[:MOST]
  images = np.asarray(dataset.test_images[np.sort(some)])
  labels = np.asarray(dataset.test_labels)[np.sort(some)]
  features = backbone.features(images, batch_size)
  with files.atomic_write(path) as temporary:
    fig = pictures.draw_features(features, labels, images, dataset.classes)
    fig.savefig(temporary, dpi=100, format="png")
