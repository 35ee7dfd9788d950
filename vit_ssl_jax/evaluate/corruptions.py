"""CIFAR-10-C and CIFAR-100-C: CIFAR's test images under common corruptions.

Hendrycks and Dietterich, 2019 (https://arxiv.org/abs/1903.12261). The 10,000
test images come under 15 corruptions and 4 extra ones, each at 5 severities.
Only what lies on the disk is read; nothing is downloaded.
"""

import itertools
import pathlib
from typing import NamedTuple

import numpy as np
from etils import epath

from vit_ssl_jax.data import load, tfds_sets
from vit_ssl_jax.data.pixels import resized
from vit_ssl_jax.errors import UserError

# In the paper's order: noise, blur, weather, digital. The mean is over these.
CORRUPTIONS = (
  "gaussian_noise", "shot_noise", "impulse_noise",
  "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
  "snow", "frost", "fog", "brightness",
  "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# Meant for validation, and in no mean.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)
IMAGES = 10_000  # of one corruption at one severity
SIZE = 32  # pixels
# In a folder that is no whole set but a small one of the same format, for
# trying things out: how many images it has instead of IMAGES.
STAND_IN = "stand_in.txt"


class Benchmark(NamedTuple):
  """A published set."""

  title: str  # of its folder
  num_classes: int
  url: str  # of its archive, 2.9 GB
  md5: str  # as Zenodo states it
  tfds_name: str = ""  # of the same set in TFDS


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
# TFDS's names, where they differ.
TFDS_NAMES = {
  "glass_blur": "frosted_glass_blur",
  "elastic_transform": "elastic",
}


class Place(NamedTuple):
  """A set that `find` has found."""

  name: str  # one of SETS
  folder: epath.Path | pathlib.Path
  prepared: bool  # by TFDS; else the files are as published
  corruptions: tuple[str, ...]  # CORRUPTIONS and what there is of EXTRA
  stand_in: int = 0  # its images, where it is no whole set

  @property
  def images(self):
    """Of one corruption at one severity."""
    return self.stand_in or IMAGES


def find(name, data_dir=None):
  """Finds a set, in its published form or as TFDS has prepared it.

  Published files are all checked here, but for their pixels, so that what is
  wrong with the last of them is known before the first is read.

  Args:
    name: one of SETS, which is looked for in `data_dir/CIFAR-10-C`, in
      `data_dir/downloads/manual/CIFAR-10-C` and, CIFAR-10-C only, in TFDS's
      `data_dir/cifar10_corrupted`; or with its published folder,
      `cifar10_c:/path/to/CIFAR-10-C`.
    data_dir: where TFDS keeps its sets; None is `$TFDS_DATA_DIR` or else
      `~/tensorflow_datasets`.

  Returns:
    A Place.

  Raises:
    UserError: the set is not there, or it is not whole.
  """
  name, _, given = name.partition(":")
  if given:
    return published(name, pathlib.Path(given).expanduser())
  title, *_, tfds_name = SETS[name]
  root = tfds_sets.data_root(data_dir)
  folders = [root / title, root / "downloads" / "manual" / title]
  for folder in folders:
    if folder.is_dir():
      return published(name, folder)
  if tfds_name:
    folders.append(root / tfds_name)
    if folders[-1].is_dir():
      return prepared(name, folders[-1])
  raise absent(name, folders)


def absent(name, folders):
  """The UserError that says how to get a set into one of its folders."""
  title, _, url, md5, tfds_name = SETS[name]
  for archive in [folder.with_name(f"{title}.tar") for folder in folders]:
    if archive.exists():
      return UserError(
        f"{archive} is not a folder: unpack it with `tar -xf {archive} -C"
        f" {archive.parent}` and check that its MD5 is {md5}."
      )
  advice = f"unpack {url} (MD5 {md5}) in {folders[0].parent}"
  if tfds_name:
    advice += f", run `{tfds_build(folders[-1])}`"
  places = " nor as ".join(map(str, folders))
  return UserError(
    f'The set "{name}" is not there, neither as {places}: {advice}, or name its'
    f" folder as {name}:/path/to/{title}."
  )


def tfds_build(folder):
  return f"tfds build {folder.name} --data_dir={folder.parent}"


def read(place, image_size):
  """Reads a set, one severity of one corruption at a time.

  What TFDS has prepared comes in TFDS's order and not in that of the test set.

  Args:
    place: a Place.
    image_size: S; other than 32, images are resized to S×S.

  Yields:
    A corruption, a severity, images (10000, S, S, 3) uint8 and labels (10000,)
    integers.

  Raises:
    UserError: a file has changed since, or what TFDS has prepared is damaged.
  """
  read_one = read_prepared if place.prepared else read_published
  for corruption, severity in itertools.product(place.corruptions, SEVERITIES):
    images, labels = read_one(place, corruption, severity)
    images = resized(images, image_size, "squash")
    yield corruption, severity, images, labels


def published(name, folder):
  """The Place of an unpacked archive, after checking its files."""
  extra = tuple(x for x in EXTRA if (folder / f"{x}.npy").exists())
  note = folder / STAND_IN
  count = int(note.read_text()) if note.exists() else 0
  place = Place(name, folder, False, CORRUPTIONS + extra, count)
  for corruption in place.corruptions:
    open_published(place, corruption)
  return place


def open_published(place, corruption):
  """All severities of a corruption, 1 first: images and labels, mapped."""
  count, found = len(SEVERITIES) * place.images, []
  paths = [place.folder / f"{file}.npy" for file in (corruption, "labels")]
  for path in paths:
    try:
      found.append(np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
      raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
      raise UserError(
        f"{path} is cut off or no .npy file; unpack its archive again."
      ) from error
  check(place, paths, found, count)
  return found


def read_published(place, corruption, severity):
  """One severity's images and labels."""
  here = slice((severity - 1) * place.images, severity * place.images)
  # Mapped anew each time, so that no other severity's pages stay in memory.
  return [np.array(x[here]) for x in open_published(place, corruption)]


def prepared(name, folder):
  """The Place of a set that TFDS keeps in one folder for each part."""

  def complete(corruption):
    parts = [part(folder, corruption, severity) for severity in SEVERITIES]
    return all((x / "dataset_info.json").exists() for x in parts)

  missing = [x for x in CORRUPTIONS if not complete(x)]
  if missing:
    raise UserError(
      f"{folder} does not hold all severities of {', '.join(missing)}: make"
      f" them with `{tfds_build(folder)}`."
    )
  return Place(name, folder, True, CORRUPTIONS + tuple(filter(complete, EXTRA)))


def part(folder, corruption, severity):
  """Where TFDS keeps one severity of one corruption."""
  name = TFDS_NAMES.get(corruption, corruption)
  return folder / f"{name}_{severity}" / TFDS_VERSION


def read_prepared(place, corruption, severity):
  """One severity's images and labels, decoded into the cache."""
  path = part(place.folder, corruption, severity)
  options = load.Options(resize="squash", progress=False)
  found = tfds_sets.read_split(place.name, path, "test", SIZE, options)
  arrays = [found.images, found.labels]
  check(place, [path, path], arrays, IMAGES)
  return arrays


def check(place, paths, arrays, count):
  """Raises a UserError unless images and labels are as they should be."""
  wanted = [(np.uint8, (count, SIZE, SIZE, 3)), (np.integer, (count,))]
  for path, array, (kind, shape) in zip(paths, arrays, wanted, strict=True):
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
      raise UserError(
        f"{path} is {array.dtype} of shape {array.shape}; it must be"
        f" {kind.__name__} of shape {shape}."
      )
  num_classes = SETS[place.name].num_classes
  low, high = arrays[1].min(), arrays[1].max()
  # All classes occur: ten of them would be CIFAR-10-C under the other's name.
  if (low, high) != (0, num_classes - 1):
    raise UserError(
      f"{paths[1]}: labels run from {low} to {high}; with {num_classes} classes"
      f" they must run from 0 to {num_classes - 1}."
    )
