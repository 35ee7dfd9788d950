"""A model's outputs for every image of a set, and its top-1 accuracy."""

import jax
import numpy as np

from vit_ssl_jax.augment import multi_crop
from vit_ssl_jax.parallel import hosts


def make_predict(model, mean, std):
  """Makes (params, images (B, H, W, 3) uint8) -> logits (B, C)."""

  def predict(params, images):
    images = multi_crop.evaluation_view(images, mean, std)
    return model.apply({"params": params}, images)

  return predict


def parts(dataset):
  """What a `load.Dataset` is evaluated on: (prefix of names, images, labels).

  The test images, whose figures have no prefix, and the validation images, of
  each of which there may be none.
  """
  found = [
    ("", dataset.test_images, dataset.test_labels),
    ("val_", dataset.val_images, dataset.val_labels),
  ]
  return [part for part in found if len(part[2])]


def extract(function, images, batch_size, batch_sharding):
  """Outputs for every image, once each and in order, on every process.

  All batches have one shape: the last one is padded with zeros, whose outputs
  are dropped.

  Args:
    function: a jitted (images (B, H, W, 3) uint8) -> (B, ...).
    images: (N, H, W, 3) uint8, the same on every process, which each places
      its own rows of.
    batch_size: B, rounded up to a multiple of the number of devices.
    batch_sharding: how a batch lies on the devices.

  Returns:
    (N, ...) NumPy array.
  """
  batch_size += -batch_size % batch_sharding.mesh.size
  outputs = []
  for start in range(0, len(images), batch_size):
    batch = np.asarray(images[start : start + batch_size])
    count = len(batch)
    batch = np.pad(batch, [(0, batch_size - count), (0, 0), (0, 0), (0, 0)])
    placed = jax.make_array_from_callback(
      batch.shape, batch_sharding, batch.__getitem__
    )
    outputs.append(np.asarray(hosts.replicated(function(placed)))[:count])
  return np.concatenate(outputs)


def top1(function, images, labels, batch_size, batch_sharding):
  """Top-1 accuracy in percent of all images; the arguments are `extract`'s."""
  logits = extract(function, images, batch_size, batch_sharding)
  return percent_correct(logits, labels)


def percent_correct(logits, labels):
  """The share of rows (N, C) whose largest logit is their label's (N,)."""
  correct = np.argmax(logits, axis=-1) == labels
  return 100 * float(np.count_nonzero(correct)) / len(labels)
