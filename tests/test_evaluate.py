"""Evaluation looks at every image exactly once; probes, metrics, pictures."""

import json

import numpy as np
import pytest
from sklearn import neighbors

from vit_ssl_jax import evaluate, models
from vit_ssl_jax.evaluate import accuracy, metrics, pictures, probes
from vit_ssl_jax.parallel import mesh as sharding


def test_extract_covers_every_image_once_and_in_order():
  images = np.random.default_rng(0).integers(0, 255, (21, 4, 4, 3), np.uint8)
  mesh, shapes = sharding.make_mesh(1, 8), set()

  def total(batch):
    shapes.add(batch.shape)
    return batch.astype(np.float32).sum((1, 2, 3))

  sums = evaluate.extract(total, images, 7, sharding.batch_sharding(mesh))
  np.testing.assert_array_equal(sums, images.sum((1, 2, 3)))
  assert shapes == {(8, 4, 4, 3)}  # one more for the second device


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


def test_a_linear_probe_separates_clusters():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 300)
  features = np.eye(3)[labels] + 0.1 * rng.normal(size=(300, 3))
  top1 = probes.linear_accuracy(
    features[:200], labels[:200], features[200:], labels[200:]
  )
  assert top1 == 100


def test_metrics_of_a_classifier():
  labels = np.array([0, 0, 1, 2])
  predictions = np.array([0, 1, 1, 2])
  logits = 9.0 * np.eye(6)[predictions] - 0.1 * np.arange(6)
  scores = metrics.classification(logits, labels)
  assert (scores["images"], scores["top1"], scores["top5"]) == (4, 75, 100)
  assert scores["per_class"] == [50, 100, 100, None, None, None]
  assert np.array(scores["confusion"])[0, :2].tolist() == [1, 1]
  assert np.sum(scores["confusion"]) == 4
  json.dumps(scores)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy():
  confidence = 0.8
  logits = np.log([[confidence, 1 - confidence]] * 10)
  labels = np.array([0] * 6 + [1] * 4)
  error = metrics.calibration_error(logits, labels)
  assert error == pytest.approx(100 * (confidence - 0.6))


def test_a_mask_holds_its_share_with_the_fewest_patches():
  maps = np.array([[0.5, 0.2], [0.2, 0.1]])
  assert pictures.mask(maps, 0.6).sum() == 2
  assert pictures.mask(maps, 0.5).tolist() == [[True, False], [False, False]]
  assert pictures.mask(maps, 1.0).all()


def test_attention_maps_are_of_the_class_token_or_the_mean():
  weights = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2, 5))
  maps = models.attention_maps(weights)  # a class token and 2 x 2 patches
  np.testing.assert_array_equal(maps.reshape(3, 2, 4), weights[:, :, 0, 1:])
  np.testing.assert_array_equal(maps, models.attention_maps(weights[:, :, :1]))
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 4))
  maps = models.attention_maps(weights)  # patches alone
  assert maps.shape == (3, 2, 2, 2)
  np.testing.assert_allclose(maps.sum((2, 3)), 1)
