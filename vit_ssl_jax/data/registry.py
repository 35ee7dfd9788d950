"""What is known of each set that TFDS keeps."""

import dataclasses

DIGITS = "digits"


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
  """

  tfds_name: str
  host: str = ""
  train_split: str = "train"
  test_split: str = "test"
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()


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
  ),
  "aircraft": Facts(
    "fgvc_aircraft",
    train_split="train+validation",
  ),
  "cars": Facts("stanford_cars"),
  # Measured on the training images at 16 pixels.
  DIGITS: Facts("digits", mean=(0.3053,) * 3, std=(0.3530,) * 3),
}
