"""CIFAR-10-C and CIFAR-100-C: CIFAR's test images under common corruptions.

Hendrycks and Dietterich, 2019 (https://arxiv.org/abs/1903.12261): 15
corruptions and 4 extra ones, each at 5 severities. Sets are read from disk, as
published or as TFDS prepares them, and never downloaded.
"""

import itertools
import pathlib
from typing import NamedTuple

import numpy as np
from etils import epath

from vit_ssl_jax import cli
from vit_ssl_jax.data import load, tfds_sets
from vit_ssl_jax.data.pixels import resized
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy

# In the paper's order: noise, blur, weather, digital. The mean is over these.
CORRUPTIONS = (
  "gaussian_noise", "shot_noise", "impulse_noise",
  "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
  "snow", "frost", "fog", "brightness",
  "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# For validation; not in the mean.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)
IMAGES = 10_000  # per corruption and severity
SIZE = 32  # pixels


class Benchmark(NamedTuple):
  """A published set."""

  folder: str
  num_classes: int
  url: str  # of its archive, 2.9 GB
  md5: str  # as Zenodo states it
  tfds_name: str = ""


SETS = {
  "cifar10_c": Benchmark(
    "CIFAR-10-C",
    10,
    "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
    "56bf5dcef84df0e2308c6dcbcbbd8499",
    "cifar10_corrupted",
  ),
  "cifar100_c": Benchmark(
    "CIFAR-100-C",
    100,
    "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar",
    "11f0ed0f1191edbf9fa23466ae6021d3",
  ),
}
TFDS_VERSION = "1.0.0"
TFDS_NAMES = {  # where they differ
  "glass_blur": "frosted_glass_blur",
  "elastic_transform": "elastic",
}


class Place(NamedTuple):
  """A set on disk."""

  name: str  # one of SETS
  folder: epath.Path | pathlib.Path
  prepared: bool  # by TFDS; else as published
  corruptions: tuple[str, ...]  # CORRUPTIONS, and what there is of EXTRA


def find(name, data_dir=None):
  """Finds a set, and checks the shapes of all files if it is as published.

  Args:
    name: one of SETS, or with its folder, `cifar10_c:/path/to/CIFAR-10-C`.
    data_dir: as of `load.load`; it holds `CIFAR-10-C`, maybe in
      `downloads/manual`, or `cifar10_corrupted` as TFDS prepares it.

  Raises:
    UserError: the set is missing or incomplete.
  """
  name, _, path = name.partition(":")
  if path:
    return published(name, pathlib.Path(path).expanduser())
  title, _, url, md5, tfds_name = SETS[name]
  root = tfds_sets.data_root(data_dir)
  folders = [root / title, root / "downloads" / "manual" / title]
  for folder in folders:
    if folder.is_dir():
      return published(name, folder)
  command = ""
  if tfds_name:
    folders.append(root / tfds_name)
    if folders[-1].is_dir():
      return prepared(name, folders[-1])
    command = f", run {tfds_build(folders[-1])}"
  raise UserError(
    f"there is no {name} in {' or '.join(map(str, folders))}: unpack {url} (MD5"
    f" {md5}) in {root}{command}, or give --suite={name}:/path/to/{title}"
  )


def tfds_build(folder):
  return f"`tfds build {folder.name} --data_dir={folder.parent}`"


def read(place, image_size):
  """Yields (corruption, severity, images, labels), one part at a time.

  Images are (N, S, S, 3) uint8, resized to S = image_size. TFDS's order is not
  that of the test set.
  """
  read_part = read_prepared if place.prepared else read_published
  for corruption, severity in itertools.product(place.corruptions, SEVERITIES):
    images, labels = read_part(place, corruption, severity)
    yield corruption, severity, resized(images, image_size, "squash"), labels


def evaluate(place, classifier, batch_size):
  """Computes a classifier's top-1 on each part of a set; see the command."""
  top1 = {name: [] for name in place.corruptions}
  total = len(top1) * len(SEVERITIES) * IMAGES
  with cli.progress_bar(total, "image", label=place.name) as bar:
    for name, _, images, labels in read(place, classifier.data["image_size"]):
      logits = classifier.logits(images, batch_size)
      top1[name].append(accuracy.percent_correct(logits, labels))
      bar.update(len(labels))
  mean = float(np.mean([top1[name] for name in CORRUPTIONS]))
  return {
    "images": IMAGES,
    "top1": mean,
    # Not divided by AlexNet's errors, as ImageNet-C's is (Hendrycks et al.,
    # 2020, https://arxiv.org/abs/1912.02781).
    "mean_error": 100 - mean,
    "corruptions": top1,
  }


def published(name, folder):
  """The Place of an unpacked archive, after checking its files."""
  extra = tuple(x for x in EXTRA if (folder / f"{x}.npy").exists())
  place = Place(name, folder, False, CORRUPTIONS + extra)
  for corruption in place.corruptions:
    open_published(place, corruption)
  return place


def open_published(place, corruption):
  """Maps images and labels of all severities of a corruption, 1 first."""
  paths = [place.folder / f"{file}.npy" for file in (corruption, "labels")]
  arrays = []
  for path in paths:
    try:
      arrays.append(np.lib.format.open_memmap(path, mode="r"))
    except OSError as e:
      raise UserError(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
      raise UserError(
        f"{path} is truncated or not an .npy file: unpack its archive again"
      ) from e
  check(place, paths, arrays, len(SEVERITIES) * IMAGES)
  return arrays


def read_published(place, corruption, severity):
  """Reads images and labels of one severity."""
  rows = slice((severity - 1) * IMAGES, severity * IMAGES)
  # Mapped anew each time, so that no other severity's pages stay in memory.
  return [np.array(x[rows]) for x in open_published(place, corruption)]


def prepared(name, folder):
  """The Place of a set that TFDS keeps, one folder for each part."""

  def complete(corruption):
    parts = [part(folder, corruption, severity) for severity in SEVERITIES]
    return all((x / "dataset_info.json").exists() for x in parts)

  missing = [x for x in CORRUPTIONS if not complete(x)]
  if missing:
    raise UserError(
      f"{folder} lacks severities of {', '.join(missing)}: run"
      f" {tfds_build(folder)}"
    )
  return Place(name, folder, True, CORRUPTIONS + tuple(filter(complete, EXTRA)))


def part(folder, corruption, severity):
  """TFDS's folder of one severity of one corruption."""
  name = TFDS_NAMES.get(corruption, corruption)
  return folder / f"{name}_{severity}" / TFDS_VERSION


def read_prepared(place, corruption, severity):
  """Reads images and labels of one severity, decoded into the cache."""
  path = part(place.folder, corruption, severity)
  options = load.Options(resize="squash", progress=False)
  decoded = tfds_sets.read_split(place.name, path, "test", SIZE, options)
  arrays = [decoded.images, decoded.labels]
  check(place, [path, path], arrays, IMAGES)
  return arrays


def check(place, paths, arrays, count):
  """Raises a UserError for images or labels of a wrong type, shape or range."""
  expected = [(np.uint8, (count, SIZE, SIZE, 3)), (np.integer, (count,))]
  for path, array, (kind, shape) in zip(paths, arrays, expected, strict=True):
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
      raise UserError(
        f"{path} is {array.dtype} of shape {array.shape}; it must be"
        f" {kind.__name__} of shape {shape}"
      )
  last = SETS[place.name].num_classes - 1
  ends = int(arrays[1].min()), int(arrays[1].max())
  # All classes occur: ten of them would be CIFAR-10-C under the other's name.
  if ends != (0, last):
    raise UserError(
      f"{paths[1]}: labels are in {[*ends]}; those of {place.name} must be in"
      f" {[0, last]}"
    )
