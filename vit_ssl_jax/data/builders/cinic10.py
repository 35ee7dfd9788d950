"""A TFDS builder for CINIC-10.

Importing this module imports tensorflow_datasets and registers the builder, so
that `tfds.load("cinic10")` finds it.
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vit_ssl_jax.data.builders import listing, sources

FOLDERS = {"train": "train", "validation": "valid", "test": "test"}
NAMES = (
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
)


class Cinic10(tfds.core.GeneratorBasedBuilder):
  """270,000 images of 32×32 from CIFAR-10 and ImageNet, in CIFAR-10's classes.

  Train, validation and test have 9,000 images of each class. Files are stored
  as they are; the grey ones among them come out as RGB.

  Source: Darlow, Crowley, Antoniou and Storkey, "CINIC-10 is not ImageNet or
  CIFAR-10", arXiv:1810.03505.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  ARCHIVE = sources.Archive(
    name="CINIC-10.tar.gz",
    digest="md5:6ee4d0c996905fe93221de577967a372",
    folder="CINIC-10",
    size=687_544_992,
    # The address under /bitstream/handle/ gives a page of text by now.
    url="https://datashare.ed.ac.uk/server/api/core/bitstreams/"
    "e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "CINIC-10.tar.gz from https://doi.org/10.7488/ds/2448, or the folder "
    "CINIC-10 with its train, valid and test; else it is downloaded."
  )
  CLASSES = len(NAMES)
  PUBLISHED: ClassVar[dict[str, int]] = {
    "train": 90_000,
    "validation": 90_000,
    "test": 90_000,
  }

  def _info(self):
    return self.dataset_info_from_configs(
      description="CINIC-10: CIFAR-10 extended by shrunken ImageNet images.",
      homepage="https://doi.org/10.7488/ds/2448",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8),
          "label": tfds.features.ClassLabel(names=NAMES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    (root,) = sources.collect(self.name, [self.ARCHIVE], dl_manager)
    # All is listed and checked before anything is written.
    listed = {
      split: listing.class_folders(root, folder, NAMES, ".png")
      for split, folder in FOLDERS.items()
    }
    for split, images in listed.items():
      listing.check_count(root, split, len(images), self.PUBLISHED[split])
    return {
      split: self._generate_examples(root, images)
      for split, images in listed.items()
    }

  def _generate_examples(self, root, listed):
    return listing.examples(root, listed)
