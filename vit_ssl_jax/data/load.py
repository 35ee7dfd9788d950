"""A set's name to its images."""

import dataclasses
import os

import numpy as np

from vit_ssl_jax.data import (
  cache,
  folder,
  npz,
  registry,
  rows,
  statistics,
  tfds_sets,
)
from vit_ssl_jax.errors import UserError

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
    name: one of `registry.SETS`, `npz:/path/file.npz` or `folder:/path`.
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
    UserError: the set is unknown, missing, damaged or not as it should be, or
      does not have the parts that are asked for.
  """
  known = registry.get(name)
  splits = {"train": train_split, "val": val_split, "test": test_split}
  how = {"resize": resize, "progress": progress}
  path = os.path.expanduser(name.partition(":")[2])
  if known is not registry.OWN:
    how |= {"data_dir": data_dir}
    parts, classes = tfds_sets.read(name, image_size, splits, **how)
  else:
    check_no_splits(name, splits)
    if name.startswith(registry.NPZ):
      parts, classes = npz.read(path, image_size, **how)
    else:
      how |= {"test_fraction": test_fraction, "seed": seed}
      how |= {"skip_broken_images": skip_broken_images}
      parts, classes = folder.read(path, image_size, **how)
  parts = {k: take(part, part.labels >= 0) for k, part in parts.items()}
  found = known.mean, known.std
  if not (mean and std) and not known.mean:
    found = statistics.cached(parts["train"].images, progress=progress)
  parts, whole = parted(name, parts, val_fraction, data_fraction, seed)
  arrays = {
    f"{part}_{field}": getattr(found, field)
    for part, found in parts.items()
    for field in ("images", "labels", "fingerprints")
  }
  return Dataset(
    name=name,
    classes=classes,
    mean=tuple(mean or found[0]),
    std=tuple(std or found[1]),
    whole_train_size=whole,
    broken={k: v for part in parts.values() for k, v in part.broken.items()},
    **arrays,
  )


def check_no_splits(name: str, splits: dict[str, str]) -> None:
  for part, split in splits.items():
    if split not in ("", part):
      raise UserError(
        f'{part}_split is "{split}", but {name} has no splits of TFDS: leave'
        f" {part}_split empty."
      )


def take(part: cache.Decoded, mask: np.ndarray) -> cache.Decoded:
  """The rows where the mask, (N,) bool, is True."""
  return cache.Decoded(
    rows.select(part.images, np.flatnonzero(mask)),
    part.labels[mask],
    part.fingerprints[mask],
    part.broken,
  )


def parted(
  name: str,
  parts: dict[str, cache.Decoded],
  val_fraction: float,
  data_fraction: float,
  seed: int,
) -> tuple[dict[str, cache.Decoded], int]:
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
    parts = parts | {"val": take(train, out), "train": take(train, ~out)}
    train = parts["train"]
  if data_fraction == 1:
    return parts, len(train.labels)
  kept = np.zeros(len(train.labels), bool)
  kept[
    rows.stratified(
      train.labels, train.fingerprints, data_fraction, seed, FRACTION
    )
  ] = True
  return parts | {"train": take(train, kept)}, len(train.labels)
