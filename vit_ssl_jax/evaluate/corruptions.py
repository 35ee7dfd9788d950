"""CIFAR-10-C and CIFAR-100-C: CIFAR's test images under common corruptions.

Hendrycks and Dietterich, 2019 (https://arxiv.org/abs/1903.12261). The 10,000
test images come under 15 corruptions and 4 extra ones, each at 5 severities.
Only what lies on the disk is read; nothing is downloaded.
"""

import dataclasses
import difflib
import itertools
import os
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import tfds_sets
from vit_ssl_jax.data.pixels import resized

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
SHAPE = (32, 32, 3)
# Of each set its published folder, its classes, and its archive of 2.9 GB with
# the MD5 that Zenodo states.
SETS = {
  "cifar10_c": (
    "CIFAR-10-C",
    10,
    "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
    "56bf5dcef84df0e2308c6dcbcbbd8499",
  ),
  "cifar100_c": (
    "CIFAR-100-C",
    100,
    "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar",
    "11f0ed0f1191edbf9fa23466ae6021d3",
  ),
}
TFDS_SETS = {"cifar10_c": "cifar10_corrupted"}
TFDS_VERSION = "1.0.0"
TFDS_NAMES = {
  "glass_blur": "frosted_glass_blur",
  "elastic_transform": "elastic",
}
LISTED = 24  # names in one message; the published folder has 20 or 21


@dataclasses.dataclass(frozen=True)
class Place:
  """A set that was found on the disk; `read` reads it."""

  name: str  # one of SETS
  folder: epath.Path
  prepared: bool  # by TFDS; else the files are as published
  corruptions: tuple[str, ...]  # CORRUPTIONS and what there is of EXTRA

  @property
  def num_classes(self) -> int:
    return SETS[self.name][1]


def find(name: str, data_dir: str | None = None) -> Place:
  """Finds a set, in its published form or as TFDS has prepared it.

  Published files are all checked here, but for their pixels, so that what is
  wrong with the last of them is known before the first is read.

  Args:
    name: `cifar10_c` or `cifar100_c`, which is looked for in
      `data_dir/CIFAR-10-C`, in `data_dir/downloads/manual/CIFAR-10-C` and,
      CIFAR-10-C only, in TFDS's `data_dir/cifar10_corrupted`; or with its
      published folder, `cifar10_c:/path/to/CIFAR-10-C`.
    data_dir: where TFDS keeps its sets; None is `$TFDS_DATA_DIR` or else
      `~/tensorflow_datasets`.

  Raises:
    UserError: the name is unknown, the set is not there, or it is not whole.
  """
  kind, _, given = name.partition(":")
  if kind not in SETS:
    near = difflib.get_close_matches(kind.lower(), SETS, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise UserError(
      f'There is no corrupted set "{kind}"{hint}; there are {", ".join(SETS)}.'
    )
  if given:
    return _published(kind, epath.Path(os.path.expanduser(given)))
  title = SETS[kind][0]
  root = tfds_sets.data_root(data_dir)
  folders = [root / title, root / "downloads" / "manual" / title]
  for folder in folders:
    if folder.is_dir():
      return _published(kind, folder)
  if kind in TFDS_SETS:
    folders.append(root / TFDS_SETS[kind])
    if folders[-1].is_dir():
      return _prepared(kind, folders[-1])
  raise _not_found(kind, folders)


def read(
  place: Place, image_size: int
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
  """Reads a set, one severity of one corruption at a time.

  TensorFlow is imported only for what TFDS has prepared, whose images come in
  TFDS's order and not in that of the test set.

  Args:
    place: of `find`.
    image_size: S; other than 32, images are resized to S×S.

  Yields:
    A corruption, a severity, images (10000, S, S, 3) uint8 and labels (10000,)
    int32.

  Raises:
    UserError: a file has changed since, or what TFDS has prepared is damaged.
  """
  get = _decode if place.prepared else _slice
  for corruption, severity in itertools.product(place.corruptions, SEVERITIES):
    images, labels = get(place, corruption, severity)
    images = resized(images, image_size, "squash")
    yield corruption, severity, images, labels
    del images, labels  # or they would stay while the next ones are read


def mean_error(accuracies: Mapping[tuple[str, int], float]) -> float:
  """The mean corruption error on CIFAR-C, in percent.

  The plain mean of 100 − top-1 over `CORRUPTIONS` and severities. On CIFAR it
  is not divided by AlexNet's errors, as ImageNet-C's is (Hendrycks et al.,
  2020, https://arxiv.org/abs/1912.02781).

  Args:
    accuracies: (corruption, severity) -> top-1 in percent; `EXTRA` are left
      out.

  Raises:
    ValueError: one of the 75 is missing.
  """
  keys = list(itertools.product(CORRUPTIONS, SEVERITIES))
  missing = [f"{c} {s}" for c, s in keys if (c, s) not in accuracies]
  if missing:
    raise ValueError(
      f"the mean corruption error needs {len(keys)} accuracies, and there is "
      f"none of {_listed(missing)}"
    )
  return float(np.mean([100 - accuracies[key] for key in keys]))


def _not_found(kind: str, folders: list[epath.Path]) -> UserError:
  title, _, url, md5 = SETS[kind]
  for folder in folders[:2]:
    archive = folder.with_name(f"{title}.tar")
    if archive.exists():
      return _packed(kind, archive)
  advice = f"unpack {url} (MD5 {md5}) in {folders[0].parent}"
  if kind in TFDS_SETS:
    build = f"tfds build {TFDS_SETS[kind]} --data_dir={folders[0].parent}"
    advice += f", run `{build}`"
  places = " nor as ".join(os.fspath(folder) for folder in folders)
  return UserError(
    f'The set "{kind}" is not there, neither as {places}: '
    f"{advice}, or name its folder as {kind}:/path/to/{title}."
  )


def _packed(kind: str, archive: epath.Path) -> UserError:
  return UserError(
    f"{archive} is not a folder: unpack it with `tar -xf {archive} -C "
    f"{archive.parent}` and check that its MD5 is {SETS[kind][3]}."
  )


def _published(kind: str, folder: epath.Path) -> Place:
  """The folder of the archive, after checking its files."""
  title, classes, _, _ = SETS[kind]
  if folder.is_file() and folder.suffix == ".tar":
    raise _packed(kind, folder)
  try:
    there = sorted(os.listdir(folder))
  except OSError as error:
    raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
  files = [f"{name}.npy" for name in ("labels", *CORRUPTIONS)]
  missing = [file for file in files if file not in there]
  if missing:
    raise UserError(
      f"{folder} is not the whole of {title}: it lacks {_listed(missing)} and "
      f"holds {_listed(there) or 'nothing'}."
    )
  extra = tuple(name for name in EXTRA if f"{name}.npy" in there)
  place = Place(kind, folder, False, CORRUPTIONS + extra)
  _all_labels(folder, classes)
  for corruption in place.corruptions:
    _all_images(folder, corruption)
  return place


def _slice(place: Place, corruption: str, severity: int):
  """One severity's images and labels, copied from the published files."""
  # Mapped anew each time, so that no other severity's pages stay in memory.
  here = slice((severity - 1) * IMAGES, severity * IMAGES)
  images = np.array(_all_images(place.folder, corruption)[here])
  return images, _all_labels(place.folder, place.num_classes)[here]


def _all_images(folder: epath.Path, corruption: str) -> np.ndarray:
  """(50000, 32, 32, 3) uint8, mapped: severity 1, then 2, and so on."""
  path = folder / f"{corruption}.npy"
  images = _map(path)
  _check_images(path, images, len(SEVERITIES) * IMAGES)
  return images


def _all_labels(folder: epath.Path, classes: int) -> np.ndarray:
  """(50000,) int32, those of the 10,000 test images for every severity."""
  path = folder / "labels.npy"
  labels = _map(path)
  _check_labels(path, labels, len(SEVERITIES) * IMAGES, classes)
  return np.array(labels, np.int32)


def _map(path: epath.Path) -> np.ndarray:
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  except ValueError as error:
    raise UserError(
      f"{path} is cut off or no .npy file; unpack its archive again."
    ) from error


def _prepared(kind: str, folder: epath.Path) -> Place:
  """TFDS's directory, one folder for each corruption and severity."""
  lacking = {name: _lacking(folder, name) for name in CORRUPTIONS + EXTRA}
  missing = [part for name in CORRUPTIONS for part in lacking[name]]
  if missing:
    build = f"tfds build {TFDS_SETS[kind]} --data_dir={folder.parent}"
    count = len(CORRUPTIONS) * len(SEVERITIES)
    raise UserError(
      f"{folder} holds {count - len(missing)} of the {count} parts that are "
      f"needed and lacks {_listed(missing)}: make them with `{build}`."
    )
  extra = tuple(name for name in EXTRA if not lacking[name])
  return Place(kind, folder, True, CORRUPTIONS + extra)


def _lacking(folder: epath.Path, corruption: str) -> list[str]:
  paths = [_config(folder, corruption, severity) for severity in SEVERITIES]
  return [
    path.parent.name
    for path in paths
    if not (path / "dataset_info.json").exists()
  ]


def _config(folder: epath.Path, corruption: str, severity: int) -> epath.Path:
  name = TFDS_NAMES.get(corruption, corruption)
  return folder / f"{name}_{severity}" / TFDS_VERSION


def _decode(place: Place, corruption: str, severity: int):
  """One severity's images and labels, as TFDS has stored them."""
  tf = tfds_sets.tensorflow()
  import tensorflow_datasets as tfds

  path = _config(place.folder, corruption, severity)
  builder = tfds.builder_from_directory(path)
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  try:
    stored = builder.as_dataset(split="test", batch_size=-1, read_config=config)
  except tf.errors.OpError as error:
    why = error.message.splitlines()[0].rstrip(".")
    raise UserError(f"{path} cannot be read: {why}.") from error
  images, labels = stored["image"].numpy(), stored["label"].numpy()
  _check_images(path, images, IMAGES)
  _check_labels(path, labels, IMAGES, place.num_classes)
  return images, labels.astype(np.int32)


def _check_images(path: epath.Path, images: np.ndarray, count: int) -> None:
  if images.dtype != np.uint8 or images.shape != (count, *SHAPE):
    raise UserError(
      f"{path} is {images.dtype} of shape {images.shape}; it must be uint8 of "
      f"shape {(count, *SHAPE)}."
    )


def _check_labels(
  path: epath.Path, labels: np.ndarray, count: int, classes: int
) -> None:
  if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
    raise UserError(
      f"{path}: labels are {labels.dtype} of shape {labels.shape}; they must "
      f"be integers of shape {(count,)}, one for each image."
    )
  # All classes occur: ten of them would be CIFAR-10-C under the other's name.
  if labels.min() != 0 or labels.max() != classes - 1:
    raise UserError(
      f"{path}: labels run from {labels.min()} to {labels.max()}; with "
      f"{classes} classes they must run from 0 to {classes - 1}."
    )


def _listed(names: list[str]) -> str:
  more = len(names) - LISTED
  return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
