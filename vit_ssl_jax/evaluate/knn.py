"""Weighted nearest neighbours on frozen features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.evaluate.accuracy import percent_correct

CHUNK = 512  # test images at a time; bounds memory at CHUNK × training images


def knn_accuracy(
  train_features,
  train_labels,
  test_features,
  test_labels,
  num_classes,
  neighbors=20,
  temperature=0.07,
):
  """Top-1 of a vote among the nearest training images, in percent.

  Cosine similarity, votes weighted by exp(similarity / temperature) (Wu et
  al., 2018, section 3.4, with the settings of DINO's evaluation).

  Args:
    train_features: (N, D).
    train_labels: (N,) integers.
    test_features: (M, D).
    test_labels: (M,) integers.
    num_classes: C.
    neighbors: how many vote; at most N do.
    temperature: above 0.

  Returns:
    A float from 0 to 100.
  """
  bank = jnp.asarray(normalize(train_features))  # put on the device once
  vote = functools.partial(
    votes,
    bank,
    train_labels,
    temperature=temperature,
    neighbors=min(neighbors, len(bank)),
    num_classes=num_classes,
  )
  queries = normalize(test_features)
  found = [vote(queries[i : i + CHUNK]) for i in range(0, len(queries), CHUNK)]
  return percent_correct(np.concatenate(found), test_labels)


@functools.partial(jax.jit, static_argnames=("neighbors", "num_classes"))
def votes(bank, labels, queries, temperature, neighbors, num_classes):
  """Votes (M, C) for unit queries (M, D) from a bank of unit rows (N, D)."""
  # Accelerators would multiply float32 in fewer bits if not told.
  products = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
  similarity, index = jax.lax.top_k(products, neighbors)
  weight = jnp.exp(similarity / temperature)
  one_hot = jax.nn.one_hot(labels[index], num_classes)
  return jnp.sum(weight[..., None] * one_hot, 1)


def normalize(features):
  """Rows (N, D) over their L2 norms."""
  norm = np.linalg.norm(features, axis=-1, keepdims=True)
  return features / np.maximum(norm, 1e-12)
