"""Registry of datasets by name; adding a TFDS dataset takes one entry."""

import dataclasses

from vit_ssl_jax.errors import UserError, did_you_mean

# Prefixes of custom datasets.
NPZ, FOLDER = "npz:", "folder:"


@dataclasses.dataclass(frozen=True)
class Entry:
  """Facts about a dataset; counts of 0 are unknown."""

  tfds_name: str = ""  # of the TFDS builder
  image_size: int = 64  # to which images are resized, in pixels
  classes: int = 0
  train_images: int = 0
  test_images: int = 0
  source: str = "TFDS downloads it."  # for the table in docs/data.md
  autoaugment: str = "imagenet"  # policy of the paper's code; "" is none
  resize: str = "crop"  # or "squash", see `pixels.decode`
  train_split: str = "train"  # the paper's, in TFDS's notation
  test_split: str = "test"
  # Of the channels in [0, 1], from the paper's code; () is computed.
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  host: str = ""  # of TFDS's own builder; "" is one of `data.builders`


SETS = {
  "cifar10": Entry(
    "cifar10",
    image_size=32,
    classes=10,
    train_images=50_000,
    test_images=10_000,
    autoaugment="cifar",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    host="https://www.cs.toronto.edu",
  ),
  "cifar100": Entry(
    "cifar100",
    image_size=32,
    classes=100,
    train_images=50_000,
    test_images=10_000,
    autoaugment="cifar",
    mean=(0.5070, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    host="https://www.cs.toronto.edu",
  ),
  "cinic10": Entry(
    "cinic10",
    image_size=32,
    classes=10,
    train_images=90_000,
    test_images=90_000,
    source="`CINIC-10.tar.gz`, downloaded or put there.",
    test_split="validation",
    mean=(0.47889522, 0.47227842, 0.43047404),
    std=(0.24205776, 0.23828046, 0.25874835),
  ),
  "svhn": Entry(
    "svhn_cropped",
    image_size=32,
    classes=10,
    train_images=73_257,
    test_images=26_032,
    source="TFDS downloads it (`svhn_cropped`, without `extra`).",
    autoaugment="svhn",
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    host="http://ufldl.stanford.edu",
  ),
  "tiny_imagenet": Entry(
    "tiny_imagenet",
    image_size=64,
    classes=200,
    train_images=100_000,
    test_images=10_000,
    source="`tiny-imagenet-200.zip`, downloaded or put there.",
    test_split="validation",
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
  ),
  "aircraft": Entry(
    "fgvc_aircraft",
    image_size=224,
    classes=100,
    train_images=6_667,
    test_images=3_333,
    source="`fgvc-aircraft-2013b.tar.gz`, downloaded or put there.",
    resize="squash",  # aircraft fill wide images
    train_split="train+validation",
  ),
  "cars": Entry(
    "stanford_cars",
    image_size=224,
    classes=196,
    train_images=8_144,
    test_images=8_041,
    source="put there: `cars_train.tgz`, `cars_test.tgz`, `car_devkit.tgz` and"
    " `cars_test_annos_withlabels.mat`, or `car_ims.tgz` and `cars_annos.mat`.",
    resize="squash",  # and so do cars
  ),
  "digits": Entry(
    "digits",
    image_size=16,
    classes=10,
    train_images=1_437,
    test_images=360,
    source="scikit-learn has it.",
    autoaugment="",
    mean=(0.3053,) * 3,  # measured at 16 pixels
    std=(0.3530,) * 3,
  ),
}
# Custom datasets start from Tiny-ImageNet's recipe.
OWN = Entry()


def get(name: str) -> Entry:
  """The entry of a dataset; `OWN` for npz:/path/file.npz and folder:/path."""
  if name.startswith((NPZ, FOLDER)):
    return OWN
  if name in SETS:
    return SETS[name]
  known = ", ".join([*SETS, "npz:/path/file.npz", "folder:/path"])
  hint = did_you_mean(name, SETS)
  raise UserError(
    f"dataset={name!r} is unknown{hint or ':'} possible are {known}"
  )
