"""A TFDS builder for Tiny-ImageNet."""

import collections
from typing import ClassVar

from vit_ssl_jax.data.builders import archives, base


class TinyImagenet(base.Builder):
  """120,000 images of 64×64 in 200 of ImageNet's classes, 550 of each labelled.

  Train has 500 images of each class and validation 50; the official test images
  have no labels and are left out. Labels count the WNIDs in alphabetic order,
  as a folder per class would. A class is called by the first of its names, and
  where two share it by that name and the WNID.

  Source: Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.
  """

  HOMEPAGE = "http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf"
  SHAPE = (64, 64, 3)
  CLASSES = 200
  PUBLISHED: ClassVar[dict[str, int]] = {"train": 100_000, "validation": 10_000}
  ARCHIVES: ClassVar[dict[str, str]] = {
    "tiny-imagenet-200.zip": "tiny-imagenet-200"
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "tiny-imagenet-200.zip from http://cs231n.stanford.edu, or its folder "
    "tiny-imagenet-200; else it is downloaded."
  )

  def find(self, manager):
    (root,) = archives.collect(self, manager, self.ARCHIVES)
    wnids = sorted(line.strip() for line in base.lines(root / "wnids.txt"))
    self.check_classes(root / "wnids.txt", wnids)
    folders = [f"{wnid}/images" for wnid in wnids]
    train = base.class_folders(root, "train", folders, ".JPEG")
    splits = {
      "train": (root, train),
      "validation": (root, validation(root, wnids)),
    }
    return class_names(base.lines(root / "words.txt"), wnids), splits


def validation(root, wnids):
  """(path below `root`, label) of the validation images."""
  annotations = root / "val" / "val_annotations.txt"
  # Image, WNID and a bounding box, between tabs.
  rows = [(*line.split("\t"), "")[:2] for line in base.lines(annotations)]
  strange = [" ".join(row) for row in rows if row[1] not in wnids]
  base.refuse(annotations, "has a line of no class:", strange)
  folder = root / "val" / "images"
  lacking = {image for image, _ in rows} - {*base.names(folder, ".JPEG")}
  base.refuse(folder, "lacks the annotated image", lacking)
  return [(f"val/images/{image}", wnids.index(wnid)) for image, wnid in rows]


def class_names(words, wnids):
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
