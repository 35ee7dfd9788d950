"""A set's name to its images."""

import dataclasses
import hashlib
import os

import numpy as np

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import (
  cache,
  folder,
  npz,
  registry as facts,
  rows,
  statistics,
  tfds_sets,
)
from vit_ssl_jax.data.pixels import RESIZES

NPZ, FOLDER = "npz:", "folder:"
# Streams of random numbers, one for each way of parting a set.
VAL, FRACTION = 1, 2


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled set of square RGB images, decoded.

  Images are (N, S, S, 3) uint8 in the cache's files, of which only what is
  looked at is read (`numpy.memmap` or `rows.Rows`; `numpy.asarray` copies
  them); labels are (N,) int32 indices of `classes`, fingerprints (N,) uint64
  of `pixels.decode_all`. Without a validation part its arrays are empty.
  """

  name: str
  train_images: np.ndarray | rows.Rows
  train_labels: np.ndarray
  train_fingerprints: np.ndarray
  val_images: np.ndarray | rows.Rows
  val_labels: np.ndarray
  val_fingerprints: np.ndarray
  test_images: np.ndarray | rows.Rows
  test_labels: np.ndarray
  test_fingerprints: np.ndarray
  classes: tuple[str, ...]
  # Of the training images' channels, in [0, 1].
  mean: tuple[float, ...]
  std: tuple[float, ...]
  # How many training images there were before `data_fraction`.
  whole_train_size: int
  # Images that could not be read, and why.
  broken: dict[str, str]

  @property
  def streamer(self) -> str:
    """What `make_source` streams this set with: "tf" or "threads"."""
    return "threads" if self.name.startswith((NPZ, FOLDER)) else "tf"


def load(
  name: str,
  image_size: int,
  *,
  data_dir: str | None = None,
  train_split: str = "",
  val_split: str = "",
  test_split: str = "",
  resize: str = "crop",
  test_fraction: float = 0.2,
  val_fraction: float = 0.0,
  data_fraction: float = 1.0,
  skip_broken_images: bool = False,
  mean: tuple[float, ...] = (),
  std: tuple[float, ...] = (),
  seed: int = 0,
  progress: bool = True,
) -> Dataset:
  """Loads a set by name, resized to `image_size` where it is stored otherwise.

  Args:
    name: one of `facts.SETS`, `npz:/path/file.npz` or `folder:/path`.
    image_size: S; images are resized to S×S, bicubic with antialiasing.
    data_dir: where TFDS keeps its sets; None is `$TFDS_DATA_DIR` or else
      `~/tensorflow_datasets`.
    train_split, val_split, test_split: parts of a TFDS set in its own
      notation, such as train[:10%]; "" is what the paper trains and tests on,
      and no validation part.
    resize: "crop" resizes the shorter side and takes the middle, "squash"
      resizes both sides.
    test_fraction: the share of every class that a folder without train and
      test keeps for testing, in (0, 1).
    val_fraction: the share of every class's training images that is held out
      for validation, in [0, 1).
    data_fraction: the share of every class's training images to keep, in
      (0, 1]; for one seed, what a smaller share keeps a larger one keeps too.
    skip_broken_images: leave out a folder's images that cannot be read.
    mean, std: of the channels, in [0, 1]; () are the published ones, or those
      of all training images.
    seed: fixes what is held out and which share is kept.
    progress: whether slow work shows a bar.

  Raises:
    UserError: an argument is out of range, or the set is unknown, missing,
      damaged or not as it should be; in one sentence.
  """
  _check(image_size, resize, test_fraction, val_fraction, data_fraction, seed)
  splits = {"train": train_split, "val": val_split, "test": test_split}
  if name.startswith(NPZ):
    _check_no_splits(name, splits)
    parts, classes = npz.read(
      _path(name), image_size, resize=resize, progress=progress
    )
  elif name.startswith(FOLDER):
    _check_no_splits(name, splits)
    parts, classes = folder.read(
      _path(name),
      image_size,
      resize=resize,
      test_fraction=test_fraction,
      skip_broken_images=skip_broken_images,
      seed=seed,
      progress=progress,
    )
  else:
    parts, classes = tfds_sets.read(
      name,
      image_size,
      splits,
      resize=resize,
      data_dir=data_dir,
      progress=progress,
    )
  parts = {k: _take(part, part.labels >= 0) for k, part in parts.items()}
  if not (mean and std):
    known = facts.SETS.get(name)
    if known and known.mean:
      found = known.mean, known.std
    else:
      found = _statistics(parts["train"].images, progress)
    mean, std = mean or found[0], std or found[1]
  parts, whole = _parted(name, parts, val_fraction, data_fraction, seed)
  arrays = {
    f"{part}_{field}": getattr(found, field)
    for part, found in parts.items()
    for field in ("images", "labels", "fingerprints")
  }
  broken = {}
  for part in parts.values():
    broken |= part.broken
  return Dataset(
    name=name,
    classes=classes,
    mean=tuple(mean),
    std=tuple(std),
    whole_train_size=whole,
    broken=broken,
    **arrays,
  )


def _path(name):
  return os.path.expanduser(name.partition(":")[2])


def _take(part: cache.Decoded, mask: np.ndarray) -> cache.Decoded:
  """The rows where the mask, (N,) bool, is True."""
  return cache.Decoded(
    rows.select(part.images, np.flatnonzero(mask)),
    part.labels[mask],
    part.fingerprints[mask],
    part.broken,
  )


def _parted(name, parts, val_fraction, data_fraction, seed):
  """Holds out the validation images, then keeps a share of the others.

  Returns:
    "train", "val" and "test", and how many training images there were in
    between.
  """
  train = parts["train"]
  if val_fraction and "val" in parts:
    raise UserError(
      f"{name} has validation images of its own: val_fraction has to be 0, not"
      f" {val_fraction}."
    )
  if "val" not in parts:
    out = np.zeros(len(train.labels), bool)
    if val_fraction:
      out = rows.held_out(
        train.labels, train.fingerprints, val_fraction, seed, VAL
      )
    parts = parts | {"val": _take(train, out), "train": _take(train, ~out)}
  train = parts["train"]
  if data_fraction < 1:
    kept = np.zeros(len(train.labels), bool)
    kept[
      rows.stratified(
        train.labels, train.fingerprints, data_fraction, seed, FRACTION
      )
    ] = True
    parts = parts | {"train": _take(train, kept)}
  return parts, len(train.labels)


def _check(image_size, resize, test_fraction, val_fraction, fraction, seed):
  if not 0 < fraction <= 1:
    raise UserError(
      f"data_fraction is {fraction}; it must be more than 0 and at most 1."
    )
  if not 0 <= val_fraction < 1:
    raise UserError(
      f"val_fraction is {val_fraction}; it must be at least 0 and less than 1."
    )
  if not 0 < test_fraction < 1:
    raise UserError(
      f"test_fraction is {test_fraction}; it must be between 0 and 1."
    )
  if image_size < 1:
    raise UserError(f"image_size is {image_size}; it must be at least 1.")
  if resize not in RESIZES:
    raise UserError(f'resize is "{resize}"; it must be {" or ".join(RESIZES)}.')
  if seed < 0:
    raise UserError(f"seed is {seed}; it must be at least 0.")


def _check_no_splits(name, splits):
  for part, split in splits.items():
    if split not in ("", part):
      raise UserError(
        f'{part}_split is "{split}", but {name} has no splits of TFDS: leave'
        f" {part}_split empty."
      )


def _statistics(images, progress):
  """Mean and standard deviation, kept in the cache beside the images."""
  chosen = images.index.tobytes() if isinstance(images, rows.Rows) else b""
  file = getattr(getattr(images, "array", images), "filename", None)
  if file is None:  # they could not be cached either
    return statistics.of_channels(images, progress=progress)
  source = (str(file), os.stat(file).st_mtime_ns, images.shape)
  digest = hashlib.sha256(repr(source).encode() + chosen).hexdigest()[:16]
  return statistics.cached(images, digest, progress=progress)
