"""Parts of a set: stratified, seeded, and read when they are looked at.

What is chosen depends on the images, and not on the order in which a source
happens to hold them.
"""

import numpy as np


def ranked(labels: np.ndarray, fingerprints: np.ndarray) -> np.ndarray:
  """(N,) labels and fingerprints -> the rows in an order that they fix."""
  return np.lexsort((labels, fingerprints)).astype(np.int32)


def stratified(
  labels: np.ndarray,
  fingerprints: np.ndarray,
  fraction: float,
  seed: int,
  stream: int,
) -> np.ndarray:
  """(N,) labels and fingerprints -> sorted rows of a share of every class.

  Of every class the first round(fraction × count), at least one, in an order
  fixed by (seed, stream, class): so 25 % lies within 50 %. Two streams have
  nothing to do with each other.
  """
  kept, rank = [], ranked(labels, fingerprints)
  for label in np.unique(labels):
    members = rank[labels[rank] == label]
    # A spawn key, so that this order has nothing to do with an epoch's.
    key = np.random.SeedSequence(seed, spawn_key=(stream, int(label)))
    # PCG64 by name: NumPy may change its default.
    bits = np.random.Generator(np.random.PCG64(key))
    members = bits.permutation(members)
    kept.append(members[: max(1, round(fraction * len(members)))])
  return np.sort(np.concatenate(kept))


def held_out(
  labels: np.ndarray,
  fingerprints: np.ndarray,
  fraction: float,
  seed: int,
  stream: int,
) -> np.ndarray:
  """(N,) labels, fingerprints -> (N,) bool: a `stratified` share to hold out.

  A class's only image is not held out.
  """
  out = np.zeros(len(labels), bool)
  out[stratified(labels, fingerprints, fraction, seed, stream)] = True
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    if out[members].all():
      out[members[0]] = False
  return out


class Rows:
  """Rows of an array, which may be a file's, read when they are asked for.

  Has what batches are drawn with: `len`, `shape`, `dtype`, `nbytes`, indexing
  by a slice or integers, and `numpy.asarray`.
  """

  def __init__(self, array: np.ndarray, index: np.ndarray):
    self.array, self.index = array, index
    self.shape = (len(index), *array.shape[1:])
    self.dtype = array.dtype
    self.ndim = array.ndim
    self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

  def __len__(self):
    return len(self.index)

  def __getitem__(self, rows):
    return np.asarray(self.array[self.index[rows]])

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.array[self.index], dtype)


def select(images: np.ndarray, index: np.ndarray) -> np.ndarray | Rows:
  """Rows `index`, (M,) sorted, of images; all of them are the images."""
  if len(index) == len(images):
    return images
  if isinstance(images, Rows):
    return Rows(images.array, images.index[index])
  return Rows(images, index)
