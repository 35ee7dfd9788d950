"""What features are worth, beside raw pixels and the untrained network."""

import numpy as np

from vit_ssl_jax import cli
from vit_ssl_jax.evaluate.knn import knn_accuracy, pixels
from vit_ssl_jax.evaluate.linear import linear_accuracy

KINDS = ("knn", "linear")


def probe(kind, backbone, dataset, batch_size):
  """The top-1 of a simple classifier on features of a set's test images.

  Args:
    kind: "knn" or "linear".
    backbone: of `backbone.read`.
    dataset: the `load.Dataset` that it goes with.
    batch_size: images at a time.

  Returns:
    A dict that JSON can hold: images; and in percent top1, raw_pixels and
    untrained, the same on pixels less the set's mean, and on features of the
    untrained network.
  """
  labels = np.asarray(dataset.train_labels), np.asarray(dataset.test_labels)
  fresh = backbone.untrained()
  sources = {
    "top1": lambda images: backbone.features(images, batch_size),
    "raw_pixels": lambda images: pixels(images, dataset.mean),
    "untrained": lambda images: fresh.features(images, batch_size),
  }
  found = {"images": len(dataset.test_labels)}
  with cli.progress_bar(len(sources), "probe", label=kind) as bar:
    for name, features in sources.items():
      train, test = map(features, (dataset.train_images, dataset.test_images))
      if kind == "knn":
        classes = len(dataset.classes)
        found[name] = knn_accuracy(train, labels[0], test, labels[1], classes)
      else:
        found[name] = linear_accuracy(train, labels[0], test, labels[1])
      bar.update()
  return found
