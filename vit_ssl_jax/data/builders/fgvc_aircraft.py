"""A TFDS builder for FGVC-Aircraft."""

import io
from typing import ClassVar

from PIL import Image, JpegImagePlugin

from vit_ssl_jax.data.builders import archives, base
from vit_ssl_jax.errors import UserError

LISTS = {"train": "train", "validation": "val", "test": "test"}
BANNER = 20  # rows of copyright at the bottom of every image


class FgvcAircraft(base.Builder):
  """10,000 photographs of aircraft in 100 variants, about 1,100×750 pixels.

  Train, validation and test are the official ones, by variant; labels count the
  lines of variants.txt. The copyright banner, the last 20 rows of every image,
  is cut off, for which the image is encoded anew; see `without_banner`.

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
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"fgvc-aircraft-2013b.tar.gz from {HOMEPAGE}, or its folder "
    "fgvc-aircraft-2013b; else it is downloaded."
  )

  def find(self, manager):
    (root,) = archives.collect(self, manager, self.ARCHIVES)
    lines = base.lines(root / "data" / "variants.txt")
    variants = [line.strip() for line in lines]
    return variants, {
      split: (root, listed(root, split, variants)) for split in LISTS
    }

  def read(self, path):
    try:
      return without_banner(base.read_image(path))
    except UserError:
      raise
    except (OSError, ValueError) as error:
      raise UserError(f"{path} is damaged: {error}.") from error


def listed(root, split, variants):
  """(path below `root`, label) of a split's images."""
  file = root / "data" / f"images_variant_{LISTS[split]}.txt"
  # The image's number and its variant, which may have spaces in it.
  rows = [line.strip().partition(" ") for line in base.lines(file)]
  strange = [" ".join(row[::2]) for row in rows if row[2] not in variants]
  base.refuse(file, "has a line of no variant:", strange)
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
