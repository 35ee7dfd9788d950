"""Model outputs for every image of a set, and top-1 accuracy."""

import jax
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.parallel import hosts


def make_predict(model, mean, std, method=None):
  """Builds (params, images (B, H, W, 3) uint8) -> outputs, logits by default.

  Args:
    model: of `models.build`.
    mean, std: of the channels in [0, 1].
    method: of the model, or "attention" for `models.attention`.
  """

  def predict(params, images):
    images = pipelines.evaluation_view(images, mean, std)
    if method == "attention":
      return models.attention(model, params, images)
    return model.apply({"params": params}, images, method=method)

  return predict


def parts(dataset):
  """Lists the evaluation parts of a `load.Dataset` that are not empty.

  Returns:
    (prefix of the metrics' names, images, labels) of the test images, without
    a prefix, and of the validation images, "val_".
  """
  both = [
    ("", dataset.test_images, dataset.test_labels),
    ("val_", dataset.val_images, dataset.val_labels),
  ]
  return [part for part in both if len(part[2])]


def extract(function, images, batch_size, batch_sharding):
  """Computes outputs for every image, once and in order, on every process.

  All batches have one shape: the last one is padded with zeros, whose outputs
  are dropped.

  Args:
    function: a jitted (images (B, H, W, 3) uint8) -> (B, ...).
    images: (N, H, W, 3) uint8, the same on every process, each of which places
      its own rows.
    batch_size: B, rounded up to a multiple of the number of devices.
    batch_sharding: of a batch.

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
  """Computes top-1 accuracy in percent; arguments are those of `extract`."""
  logits = extract(function, images, batch_size, batch_sharding)
  return percent_correct(logits, labels)


def percent_correct(logits, labels):
  """Top-1 accuracy in percent of logits (N, C) and labels (N,)."""
  correct = np.argmax(logits, axis=-1) == labels
  return 100 * float(np.count_nonzero(correct)) / len(labels)
