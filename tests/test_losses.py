"""The losses against plain loops."""

import jax
import numpy as np

from vit_ssl_jax.train import losses


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_dino_is_the_mean_over_pairs():
  student = random(3, 5, 7)
  teacher = np.asarray(jax.nn.softmax(random(3, 2, 7, seed=1)))
  log_p = np.asarray(jax.nn.log_softmax(student / 0.1))
  pairs = [
    -(teacher[:, g] * log_p[:, v]).sum(-1).mean()
    for g in range(2)
    for v in range(5)
    if v != g
  ]
  ours = losses.dino(student, teacher, 0.1)
  np.testing.assert_allclose(ours, np.mean(pairs), rtol=1e-5)


def test_sinkhorn_against_normalising_in_turn():
  logits = 0.3 * random(2, 6, 5)
  table = np.exp(logits.reshape(-1, 5).astype(np.float64) / 0.05)
  for _ in range(3):
    table /= table.sum(0, keepdims=True)
    table /= table.sum(1, keepdims=True)
  ours = losses.sinkhorn_targets(logits, 0.05)
  np.testing.assert_allclose(ours.reshape(-1, 5), table, rtol=1e-3, atol=1e-6)
  many = losses.sinkhorn_targets(logits, 0.05, iterations=200)
  np.testing.assert_allclose(many.sum((0, 1)), 12 / 5, rtol=0.02)


def test_sinkhorn_at_a_temperature_that_would_overflow():
  ours = losses.sinkhorn_targets(random(2, 6, 5), 1e-3)
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-5)


def test_center_moves_towards_the_mean():
  outputs = random(2, 4, 3)
  center = losses.update_center(np.ones(3, np.float32), outputs, 0.9)
  np.testing.assert_allclose(
    center, 0.9 + 0.1 * outputs.mean((0, 1)), rtol=1e-5
  )


def test_spread_tells_the_two_collapses_from_health():
  uniform = np.full((2, 4, 8), 1 / 8, np.float32)
  entropy, divergence = losses.entropy_and_divergence(uniform)
  np.testing.assert_allclose([entropy, divergence], [np.log(8), 0], atol=1e-6)
  one = np.zeros((2, 4, 8), np.float32)
  one[..., 3] = 1
  np.testing.assert_allclose(
    losses.entropy_and_divergence(one), [0, 0], atol=1e-6
  )
  healthy = np.eye(8, dtype=np.float32).reshape(2, 4, 8)
  np.testing.assert_allclose(
    losses.entropy_and_divergence(healthy), [0, np.log(8)], atol=1e-6
  )


def test_classification_smooths_labels():
  logits = random(4, 5)
  targets = np.eye(5, dtype=np.float32)[[0, 2, 1, 4]]
  log_p = np.asarray(jax.nn.log_softmax(logits))
  smooth = 0.9 * targets + 0.1 / 5
  np.testing.assert_allclose(
    losses.classification(logits, targets, 0.1),
    -(smooth * log_p).sum(-1).mean(),
    rtol=1e-5,
  )
