"""Stratified, seeded splits by the images' content, in any order."""

import numpy as np


def ranked(labels, fingerprints):
  """(N,) labels and fingerprints -> row indices (N,) in a canonical order."""
  return np.lexsort((labels, fingerprints)).astype(np.int32)


def stratified(labels, fingerprints, fraction, seed, stream):
  """Sorted row indices of a share of every class, at least one image each.

  25 % are a subset of 50 %. Streams are independent of each other.
  """
  rows, rank = [], ranked(labels, fingerprints)
  for label in np.unique(labels):
    members = rank[labels[rank] == label]
    # A spawn key makes this independent of the epochs' orders.
    key = np.random.SeedSequence(seed, spawn_key=(stream, int(label)))
    # PCG64 by name: NumPy may change its default.
    members = np.random.Generator(np.random.PCG64(key)).permutation(members)
    rows.append(members[: max(1, round(fraction * len(members)))])
  return np.sort(np.concatenate(rows))


def held_out(labels, fingerprints, fraction, seed, stream):
  """(N,) bool mask of a `stratified` share; a class's only image stays in."""
  mask = np.zeros(len(labels), bool)
  mask[stratified(labels, fingerprints, fraction, seed, stream)] = True
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    if mask[members].all():
      mask[members[0]] = False
  return mask
