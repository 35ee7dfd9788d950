"""Applies a function to every image of a set, batch by batch."""

import jax
import numpy as np

from vit_ssl_jax.data import batches
from vit_ssl_jax.evaluate.accuracy import accuracy
from vit_ssl_jax.parallel import hosts


def parts(dataset):
  """What a `load.Dataset` is evaluated on: (prefix of names, images, labels).

  The test images, whose figures have no prefix, and any validation images.
  """
  found = [("", dataset.test_images, dataset.test_labels)]
  if len(dataset.val_labels):
    found.append(("val_", dataset.val_images, dataset.val_labels))
  return found


def extract(function, images, labels, batch_size, batch_sharding):
  """Outputs for every image, once each and in order, on every process.

  Args:
    function: a jitted (images (B, H, W, 3) uint8) -> (B, ...).
    images: (N, H, W, 3) uint8, the same on every process, which each places
      its own rows of.
    labels: (N,).
    batch_size: B, rounded up to what the devices divide.
    batch_sharding: how a batch lies on the devices.

  Returns:
    (N, ...) NumPy array.
  """
  batch_size += -batch_size % batch_sharding.mesh.size
  outputs = []
  for batch in batches.padded_batches(images, labels, batch_size):
    image = batch["image"]
    placed = jax.make_array_from_callback(
      image.shape, batch_sharding, image.__getitem__
    )
    outputs.append((hosts.replicated(function(placed)), batch["mask"]))
  return np.concatenate([np.asarray(out)[mask] for out, mask in outputs])


def top1(function, images, labels, batch_size, batch_sharding):
  """The top-1 accuracy of logits, in percent of all images; as `extract`."""
  logits = extract(function, images, labels, batch_size, batch_sharding)
  return accuracy(logits, labels)
