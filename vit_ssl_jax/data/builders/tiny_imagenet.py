"""TFDS builder for Tiny-ImageNet."""

import collections
from typing import ClassVar

from vit_ssl_jax.data.builders import base


class TinyImagenet(base.Builder):
  """110,000 labelled images of 64×64 in 200 of ImageNet's classes.

  Train has 500 images of each class and validation 50; the official test images
  have no labels and are left out. Labels are in the alphabetic order of the
  WNIDs. A class has the first of its names, with the WNID if two share it.

  Source: Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.
  """

  HOMEPAGE = "http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf"
  SHAPE = (64, 64, 3)
  CLASSES = 200
  PUBLISHED: ClassVar[dict[str, int]] = {"train": 100_000, "validation": 10_000}
  ARCHIVES: ClassVar[dict[str, str]] = {
    "tiny-imagenet-200.zip": "tiny-imagenet-200"
  }

  def find(self, manager):
    (root,) = base.collect(self, manager, self.ARCHIVES)
    wnids = sorted(line.strip() for line in base.lines(root / "wnids.txt"))
    folders = [f"{wnid}/images" for wnid in wnids]
    train = base.class_folders(root, "train", folders, ".JPEG")
    return class_names(base.lines(root / "words.txt"), wnids), {
      "train": (root, train),
      "validation": (root, validation(root, wnids)),
    }


def validation(root, wnids):
  """(path below `root`, label) of the validation images."""
  file = root / "val" / "val_annotations.txt"
  # Image, WNID and a bounding box, between tabs.
  rows = [(*line.split("\t"), "")[:2] for line in base.lines(file)]
  unknown = [" ".join(row) for row in rows if row[1] not in wnids]
  base.refuse(file, "has a line of no class:", unknown)
  return [(f"val/images/{image}", wnids.index(wnid)) for image, wnid in rows]


def class_names(words, wnids):
  """A name for each WNID, from the lines "WNID\\tNAME, ..." of words.txt."""
  rows = (line.partition("\t") for line in words)
  first = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
  names = [first.get(wnid, wnid) for wnid in wnids]
  counts = collections.Counter(names)
  return [
    f"{name} ({wnid})" if counts[name] > 1 else name
    for name, wnid in zip(names, wnids, strict=True)
  ]
