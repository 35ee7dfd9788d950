"""What is known of each set that TFDS keeps."""

import dataclasses

DIGITS = "digits"
NPZ, FOLDER = "npz:", "folder:"


@dataclasses.dataclass(frozen=True)
class Facts:
  """One of the sets that TFDS keeps.

  Attributes:
    tfds_name: the builder's name.
    host: where TFDS's own builder downloads from; "" for those of
      `data.builders`.
    train_split, test_split: what the paper trains and tests on.
    mean, std: of the training images' channels in [0, 1], as the paper's code
      gives them; () where it does not, and they are computed.
    image_size, patch_size: the paper's, in pixels; the patch size is ViT's and
      CaiT's.
    resize: how images come to that size, "crop" or "squash".
  """

  tfds_name: str
  host: str = ""
  train_split: str = "train"
  test_split: str = "test"
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  image_size: int = 32
  patch_size: int = 4
  resize: str = "crop"


SETS = {
  "cifar10": Facts(
    "cifar10",
    host="https://www.cs.toronto.edu",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
  ),
  "cifar100": Facts(
    "cifar100",
    host="https://www.cs.toronto.edu",
    mean=(0.5070, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
  ),
  "cinic10": Facts(
    "cinic10",
    test_split="validation",
    mean=(0.47889522, 0.47227842, 0.43047404),
    std=(0.24205776, 0.23828046, 0.25874835),
  ),
  "svhn": Facts(
    "svhn_cropped",
    host="http://ufldl.stanford.edu",
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
  ),
  "tiny_imagenet": Facts(
    "tiny_imagenet",
    test_split="validation",
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    image_size=64,
    patch_size=8,
  ),
  "aircraft": Facts(
    "fgvc_aircraft",
    train_split="train+validation",
    image_size=224,
    patch_size=16,
    resize="squash",
  ),
  "cars": Facts(
    "stanford_cars", image_size=224, patch_size=16, resize="squash"
  ),
  # Measured on the training images at 16 pixels.
  DIGITS: Facts("digits", mean=(0.3053,) * 3, std=(0.3530,) * 3, image_size=16),
}
OWN = Facts("", image_size=64, patch_size=8)  # a user's own set


def get(name):
  """The facts of a set; those of `OWN` for one that is not in `SETS`."""
  return SETS.get(name, OWN)
