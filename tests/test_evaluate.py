"""Evaluation looks at every image exactly once."""

import jax
import numpy as np
from sklearn import neighbors

from vit_ssl_jax import evaluate
from vit_ssl_jax.evaluate import accuracy
from vit_ssl_jax.parallel import mesh as sharding


def test_extract_covers_every_image_once_and_in_order():
  images = np.random.default_rng(0).integers(0, 255, (21, 4, 4, 3), np.uint8)
  mesh = sharding.make_mesh(1, 8)
  sums = evaluate.extract(
    jax.jit(lambda x: x.astype(np.float32).sum((1, 2, 3))),
    images,
    8,
    sharding.batch_sharding(mesh),
  )
  np.testing.assert_array_equal(sums, images.sum((1, 2, 3)))


def test_accuracy_is_in_percent():
  logits = np.eye(4)[[0, 1, 2, 2]]
  assert accuracy.percent_correct(logits, np.array([0, 1, 2, 3])) == 75.0


def test_knn_against_scikit_learn():
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(3, 8))
  labels = rng.integers(0, 3, 90)
  features = centers[labels] + 0.9 * rng.normal(size=(90, 8))
  train, test = slice(0, 60), slice(60, 90)
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  theirs = neighbors.KNeighborsClassifier(
    20,
    # On unit vectors, distance² = 2 - 2 · cosine similarity.
    weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07),
    algorithm="brute",
  ).fit(unit[train], labels[train])
  expected = 100 * theirs.score(unit[test], labels[test])
  ours = evaluate.knn_accuracy(
    features[train].astype(np.float32),
    labels[train],
    features[test].astype(np.float32),
    labels[test],
    3,
  )
  np.testing.assert_allclose(ours, expected)
  assert 34 < ours < 100


def test_knn_with_fewer_images_than_neighbors():
  features = np.eye(3, dtype=np.float32)
  labels = np.arange(3)
  assert evaluate.knn_accuracy(features, labels, features, labels, 3) == 100
