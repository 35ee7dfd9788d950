"""A TFDS builder for Tiny-ImageNet.

Importing this module imports tensorflow_datasets and registers the builder, so
that `tfds.load("tiny_imagenet")` finds it.
"""

import collections
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vit_ssl_jax.data.builders import listing, sources


def _validation(root, wnids):
  """(path below `root`, label) of the validation images."""
  annotations = root / "val" / "val_annotations.txt"
  # Image, WNID and a bounding box, between tabs.
  rows = [(*line.split("\t"), "")[:2] for line in listing.lines(annotations)]
  strange = [" ".join(row) for row in rows if row[1] not in wnids]
  listing.refuse(annotations, "has a line of no class:", strange)
  folder = root / "val" / "images"
  lacking = {image for image, _ in rows} - {*listing.names(folder, ".JPEG")}
  listing.refuse(folder, "lacks the annotated image", lacking)
  return [(f"val/images/{image}", wnids.index(wnid)) for image, wnid in rows]


def _class_names(words, wnids):
  """A name for each WNID: its first in words.txt, with the WNID if not alone.

  Args:
    words: lines of WNID, tab and names between commas.
    wnids: the classes; one that `words` lacks is its own name.
  """
  rows = (line.partition("\t") for line in words)
  first = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
  chosen = [first.get(wnid, wnid) for wnid in wnids]
  counts = collections.Counter(chosen)
  return [
    f"{name} ({wnid})" if counts[name] > 1 else name
    for name, wnid in zip(chosen, wnids, strict=True)
  ]


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
  """120,000 images of 64×64 in 200 of ImageNet's classes, 550 of each labelled.

  Train has 500 images of each class and validation 50; the official test images
  have no labels and are left out. Labels count the WNIDs in alphabetic order,
  as a folder per class would. A class is called by the first of its names, and
  where two share it by that name and the WNID. Files are stored as they are;
  the grey ones among them come out as RGB.

  Source: Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  ARCHIVE = sources.Archive(
    name="tiny-imagenet-200.zip",
    digest="md5:90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
    size=248_100_043,
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "tiny-imagenet-200.zip from http://cs231n.stanford.edu, or its folder "
    "tiny-imagenet-200; else it is downloaded."
  )
  CLASSES = 200
  PUBLISHED: ClassVar[dict[str, int]] = {"train": 100_000, "validation": 10_000}

  def _info(self):
    return self.dataset_info_from_configs(
      description="Tiny-ImageNet: 200 classes of ImageNet, of 64 pixels.",
      homepage="http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(64, 64, 3), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    (root,) = sources.collect(self.name, [self.ARCHIVE], dl_manager)
    wnids = sorted(line.strip() for line in listing.lines(root / "wnids.txt"))
    listing.check_classes(root / "wnids.txt", len({*wnids}), self.CLASSES)
    folders = [f"{wnid}/images" for wnid in wnids]
    listed = {
      "train": listing.class_folders(root, "train", folders, ".JPEG"),
      "validation": _validation(root, wnids),
    }
    for split, images in listed.items():
      listing.check_count(root, split, len(images), self.PUBLISHED[split])
    words = listing.lines(root / "words.txt")
    self.info.features["label"].names = _class_names(words, wnids)
    return {
      split: self._generate_examples(root, images)
      for split, images in listed.items()
    }

  def _generate_examples(self, root, listed):
    return listing.examples(root, listed)
