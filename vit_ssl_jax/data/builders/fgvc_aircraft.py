"""A TFDS builder for FGVC-Aircraft.

Importing this module imports tensorflow_datasets and registers the builder, so
that `tfds.load("fgvc_aircraft")` finds it.
"""

import io
from typing import ClassVar

import tensorflow_datasets as tfds
from PIL import Image, JpegImagePlugin

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data.builders import listing, sources

LISTS = {"train": "train", "validation": "val", "test": "test"}
BANNER = 20  # rows of copyright at the bottom of every image


def _listed(root, split, variants):
  """(path below `root`, label) of a split's images."""
  file = root / "data" / f"images_variant_{LISTS[split]}.txt"
  # The image's number and its variant, which may have spaces in it.
  rows = [line.strip().partition(" ") for line in listing.lines(file)]
  strange = [" ".join(row[::2]) for row in rows if row[2] not in variants]
  listing.refuse(file, "has a line of no variant:", strange)
  return [
    (f"data/images/{number}.jpg", variants.index(variant))
    for number, _, variant in rows
  ]


def without_banner(data: bytes) -> bytes:
  """A JPEG image's bytes without its last `BANNER` rows.

  It is decoded and encoded anew, with its own tables of quantisation and chroma
  sampling and on its own grid of blocks, which keeps its size and nearly all of
  its pixels.

  Raises:
    OSError, ValueError: it is no JPEG image, or has no more rows.
  """
  with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
    width, height = image.size
    cut = image.crop((0, 0, width, height - BANNER))
    out = io.BytesIO()
    cut.save(
      out,
      "JPEG",
      qtables=image.quantization,
      subsampling=JpegImagePlugin.get_sampling(image),
    )
  return out.getvalue()


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
  """10,000 photographs of aircraft in 100 variants, about 1,100×750 pixels.

  Train, validation and test are the official ones, by variant; labels count the
  lines of variants.txt. The copyright banner, the last 20 rows of every image,
  is cut off, for which the image is encoded anew; see `without_banner`.

  Source: Maji, Kannala, Rahtu, Blaschko and Vedaldi, "Fine-Grained Visual
  Classification of Aircraft", arXiv:1306.5151; for non-commercial research.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  ARCHIVE = sources.Archive(
    name="fgvc-aircraft-2013b.tar.gz",
    digest="md5:d4acdd33327262359767eeaa97a4f732",
    folder="fgvc-aircraft-2013b",
    size=2_753_340_328,
    url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
    "fgvc-aircraft-2013b.tar.gz",
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "fgvc-aircraft-2013b.tar.gz from "
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, or its folder "
    "fgvc-aircraft-2013b; else it is downloaded."
  )
  CLASSES = 100
  PUBLISHED: ClassVar[dict[str, int]] = {
    "train": 3_334,
    "validation": 3_333,
    "test": 3_333,
  }

  def _info(self):
    return self.dataset_info_from_configs(
      description="FGVC-Aircraft 2013b: photographs of 100 aircraft variants.",
      homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    (root,) = sources.collect(self.name, [self.ARCHIVE], dl_manager)
    file = root / "data" / "variants.txt"
    variants = [line.strip() for line in listing.lines(file)]
    listing.check_classes(file, len({*variants}), self.CLASSES)
    listed = {split: _listed(root, split, variants) for split in LISTS}
    folder = root / "data" / "images"
    there = {f"data/images/{name}" for name in listing.names(folder, ".jpg")}
    wanted = {path for images in listed.values() for path, _ in images}
    listing.refuse(root, "lacks the annotated image", wanted - there)
    for split, images in listed.items():
      listing.check_count(root, split, len(images), self.PUBLISHED[split])
    self.info.features["label"].names = variants
    return {
      split: self._generate_examples(root, images)
      for split, images in listed.items()
    }

  def _generate_examples(self, root, listed):
    for key, example in listing.examples(root, listed):
      try:
        image = without_banner(example["image"])
      except (OSError, ValueError) as error:
        raise UserError(f"{root / key} is damaged: {error}.") from error
      yield key, example | {"image": image}
