"""TFDS builder for FGVC-Aircraft."""

import io
from typing import ClassVar

from PIL import Image, JpegImagePlugin

from vit_ssl_jax.data.builders import base
from vit_ssl_jax.errors import UserError

LISTS = {"train": "train", "validation": "val", "test": "test"}
BANNER = 20  # rows of copyright at the bottom of every image


class FgvcAircraft(base.Builder):
  """10,000 photographs of aircraft in 100 variants, about 1,100×750 pixels.

  Train, validation and test are the official ones, by variant; labels are line
  numbers of variants.txt. The copyright banner, the last 20 rows of every
  image, is cut off; see `without_banner`.

  Source: Maji, Kannala, Rahtu, Blaschko and Vedaldi, "Fine-Grained Visual
  Classification of Aircraft", arXiv:1306.5151; for non-commercial research.
  """

  HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft"
  CLASSES = 100
  PUBLISHED: ClassVar[dict[str, int]] = {
    "train": 3_334,
    "validation": 3_333,
    "test": 3_333,
  }
  ARCHIVES: ClassVar[dict[str, str]] = {
    "fgvc-aircraft-2013b.tar.gz": "fgvc-aircraft-2013b"
  }

  def find(self, manager):
    (root,) = base.collect(self, manager, self.ARCHIVES)
    lines = base.lines(root / "data" / "variants.txt")
    variants = [line.strip() for line in lines]
    return variants, {
      split: (root, listed(root, name, variants))
      for split, name in LISTS.items()
    }

  def read(self, path):
    try:
      return without_banner(base.read_image(path))
    except UserError:
      raise
    except (OSError, ValueError) as error:
      raise UserError(f"{path} is damaged: {error}") from error


def listed(root, name, variants):
  """(path below `root`, label) of a split's images."""
  file = root / "data" / f"images_variant_{name}.txt"
  # The image's number and its variant, which may contain spaces.
  rows = [line.strip().partition(" ") for line in base.lines(file)]
  unknown = [" ".join(row[::2]) for row in rows if row[2] not in variants]
  base.refuse(file, "has a line of no variant:", unknown)
  return [
    (f"data/images/{number}.jpg", variants.index(variant))
    for number, _, variant in rows
  ]


def without_banner(data):
  """A JPEG image without its last `BANNER` rows, by its own quantisation."""
  with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
    width, height = image.size
    cut = image.crop((0, 0, width, height - BANNER))
    tables, sampling = image.quantization, JpegImagePlugin.get_sampling(image)
  out = io.BytesIO()
  cut.save(out, "JPEG", qtables=tables, subsampling=sampling)
  return out.getvalue()
