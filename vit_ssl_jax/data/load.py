"""A set's name to its images in memory."""

import dataclasses
import os

import numpy as np

from vit_ssl_jax.data import npz, tfds_sets
from vit_ssl_jax.data.pixels import square_rgb
from vit_ssl_jax.errors import UserError

NPZ = "npz:"


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled set of square RGB images, decoded, in host memory."""

  name: str
  train_images: np.ndarray  # (N, S, S, 3) uint8
  train_labels: np.ndarray  # (N,) int32
  test_images: np.ndarray  # (M, S, S, 3) uint8
  test_labels: np.ndarray  # (M,) int32
  classes: tuple[str, ...]

  @property
  def streamer(self) -> str:
    """What `make_source` streams this set with: "tf" or "threads"."""
    return "threads" if self.name.startswith(NPZ) else "tf"


def load(
  name: str,
  image_size: int,
  *,
  data_dir: str | None = None,
  data_fraction: float = 1.0,
  train_split: str = "train",
  seed: int = 0,
  progress: bool = True,
) -> Dataset:
  """Loads a set by name, resized to `image_size` where it is stored otherwise.

  Args:
    name: `cifar10`, `cifar100`, `svhn`, `digits`, or `npz:/path/file.npz`.
    image_size: S; images are resized to S×S, bicubic with antialiasing.
    data_dir: where TFDS keeps its sets; None is `$TFDS_DATA_DIR` or else
      `~/tensorflow_datasets`.
    data_fraction: the share of every class's training images to keep, in
      (0, 1]; for one seed, what a smaller share keeps a larger one keeps too.
    train_split: what to train on, as TFDS writes it, e.g. `train[:10%]`.
    seed: which images `data_fraction` keeps; at least 0.
    progress: whether to draw progress bars.

  Raises:
    UserError: an argument or the set's files are not as described.
  """
  if not 0 < data_fraction <= 1:
    raise UserError(
      f"data_fraction is {data_fraction}; it must be more than 0 and at most 1."
    )
  if image_size < 1:
    raise UserError(f"image_size is {image_size}; it must be at least 1.")
  if seed < 0:
    raise UserError(f"seed is {seed}; it must be at least 0.")
  if name.startswith(NPZ):
    arrays, classes = _load_npz(name, image_size, train_split, progress)
  else:
    arrays, classes = tfds_sets.read(
      name, image_size, train_split, data_dir=data_dir, progress=progress
    )
  if data_fraction < 1:
    kept = subset(arrays["train_labels"], data_fraction, seed)
    for key in ("train_images", "train_labels"):
      arrays[key] = arrays[key][kept]
  return Dataset(name=name, classes=classes, **arrays)


def _load_npz(name, image_size, train_split, progress):
  if train_split != "train":
    raise UserError(
      f'train_split is "{train_split}", but an npz: set has only "train".'
    )
  arrays = npz.read(os.path.expanduser(name.removeprefix(NPZ)))
  for key in ("train_images", "test_images"):
    arrays[key] = square_rgb(arrays[key], image_size, progress=progress)
  highest = max(arrays[f"{part}_labels"].max() for part in ("train", "test"))
  return arrays, tuple(str(i) for i in range(highest + 1))


def subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """(N,) labels -> sorted indices of a stratified share of them.

  Of every class the first round(fraction × count), at least one, in an order
  fixed by (seed, class): so 25 % lies within 50 %.
  """
  kept = []
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    # A spawn key, so that this order has nothing to do with an epoch's.
    key = np.random.SeedSequence(seed, spawn_key=(int(label),))
    members = np.random.default_rng(key).permutation(members)
    kept.append(members[: max(1, round(fraction * len(members)))])
  return np.sort(np.concatenate(kept))
