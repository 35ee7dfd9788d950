"""What images of one's own are, before any of them is decoded."""

import dataclasses
import os
import statistics

from PIL import Image

from vit_ssl_jax.data import folder, npz, pixels, registry
from vit_ssl_jax.errors import UserError

SAMPLE = 200  # files whose headers are read


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a recipe follows from.

  Attributes:
    images: how many are trained on.
    classes: how many there are.
    side: the shorter side of most images, in pixels.
  """

  images: int
  classes: int
  side: int


def look(config, dataset=None) -> Facts:
  """The facts of a config's set, or of a `load.Dataset` that is given.

  Raises:
    UserError: there is no such set, or it cannot be read.
  """
  if dataset is not None:
    count, side = dataset.train_images.shape[:2]
    return Facts(count, len(dataset.classes), side)
  name = config.dataset
  path = os.path.expanduser(name.partition(":")[2])
  if name.startswith(registry.NPZ):
    images, classes, side = of_npz(path)
  else:
    images, classes, side = of_folder(path, config.test_fraction)
  share = (1 - config.val_fraction) * config.data_fraction
  return Facts(max(1, round(share * images)), classes, side)


def of_npz(path: str) -> tuple[int, int, int]:
  """(training images, classes, shorter side) of a file, from its headers."""
  try:
    with open(path, "rb") as file:
      archive = npz.open_archive(path, file)
      npz.check_headers(path, archive, "train")
      shape, _ = npz.header(archive, "train_images")
      labels = npz.reading(
        path, "train_labels", lambda: archive["train_labels"]
      )
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  return shape[0], len(set(labels.ravel().tolist())), min(shape[1:3])


def of_folder(path: str, test_fraction: float) -> tuple[int, int, int]:
  """The same of a folder, whose images' headers are read for some of them."""
  places, listed, classes = folder.layout(path)
  part, share = ("all", 1 - test_fraction) if "all" in listed else ("train", 1)
  root = os.path.join(path, places[part])
  files = [os.path.join(root, file) for file, *_ in listed[part]]
  return round(share * len(files)), len(classes), side_of(files)


def side_of(files: list[str]) -> int:
  """The median of the shorter sides of some of the images; 0 of none."""
  sides = []
  for file in files[:: max(1, len(files) // SAMPLE)]:
    try:
      with pixels.quiet(), Image.open(file) as image:
        sides.append(min(image.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      continue  # the loader says what is broken
  return round(statistics.median(sides)) if sides else 0
