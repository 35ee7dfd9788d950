"""TFDS builder for CINIC-10."""

from typing import ClassVar

from vit_ssl_jax.data.builders import base

FOLDERS = {"train": "train", "validation": "valid", "test": "test"}
NAMES = ("airplane", "automobile", "bird", "cat", "deer")
NAMES += ("dog", "frog", "horse", "ship", "truck")


class Cinic10(base.Builder):
  """270,000 images of 32×32 from CIFAR-10 and ImageNet, in CIFAR-10's classes.

  Train, validation and test have 9,000 images of each class.

  Source: Darlow, Crowley, Antoniou and Storkey, "CINIC-10 is not ImageNet or
  CIFAR-10", arXiv:1810.03505.
  """

  HOMEPAGE = "https://doi.org/10.7488/ds/2448"
  SHAPE = (32, 32, 3)
  CLASSES = len(NAMES)
  PUBLISHED: ClassVar[dict[str, int]] = dict.fromkeys(FOLDERS, 90_000)
  ARCHIVES: ClassVar[dict[str, str]] = {"CINIC-10.tar.gz": "CINIC-10"}

  def find(self, manager):
    (root,) = base.collect(self, manager, self.ARCHIVES)
    return NAMES, {
      split: (root, base.class_folders(root, folder, NAMES, ".png"))
      for split, folder in FOLDERS.items()
    }
