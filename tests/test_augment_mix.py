"""Mixup and CutMix of a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.augment import mix


def _batch(count=6):
  images = np.random.default_rng(1).uniform(size=(count, 8, 6, 3))
  targets = jax.nn.one_hot(jnp.arange(count), count)
  return jnp.asarray(images, jnp.float32), targets


def test_mixup_and_cutmix():
  images, targets = _batch()
  partner = jnp.array([1, 2, 3, 4, 5, 0])
  mixed, soft = mix.mixup(images, targets, partner, 0.3)
  np.testing.assert_allclose(
    mixed, 0.3 * images + 0.7 * images[partner], rtol=1e-5
  )
  np.testing.assert_allclose(
    soft, 0.3 * targets + 0.7 * targets[partner], rtol=1e-5
  )
  mixed, soft = mix.cutmix(images, targets, partner, (2, 1, 5, 4))
  expected = np.array(images)
  expected[:, 2:5, 1:4] = images[partner][:, 2:5, 1:4]
  np.testing.assert_array_equal(mixed, expected)
  lam = 1 - 9 / 48
  np.testing.assert_allclose(
    soft, lam * targets + (1 - lam) * targets[partner], rtol=1e-5
  )


def test_random_mix():
  images, targets = _batch()
  keys = jax.random.split(jax.random.key(0), 1000)
  run = jax.jit(
    jax.vmap(lambda key: mix.random_mix(key, images, targets, 0.5, 1.0, 1.0))
  )
  mixed, soft = (np.asarray(x) for x in run(keys))
  np.testing.assert_allclose(soft.sum(axis=-1), 1, rtol=1e-5)
  images, targets = np.asarray(images), np.asarray(targets)
  same = np.abs(mixed - images) < 1e-6
  untouched = same.all(axis=(1, 2, 3, 4))
  cut = ~untouched & np.all(same | np.isin(mixed, images), axis=(1, 2, 3, 4))
  blended = ~untouched & ~cut
  assert abs(untouched.mean() - 0.5) < 0.1
  assert abs(cut.mean() - 0.25) < 0.06
  assert abs(blended.mean() - 0.25) < 0.06
  np.testing.assert_allclose(soft[untouched][0], targets, atol=1e-6)
  # A label weighs as many pixels as its image keeps.
  kept = same.all(axis=-1).mean(axis=(2, 3))[cut]
  weights = np.diagonal(soft, axis1=1, axis2=2)[cut]
  np.testing.assert_allclose(kept, weights, atol=1e-5)


def test_boxes_stay_inside_and_have_the_reference_size():
  keys = jax.random.split(jax.random.key(2), 500)
  boxes = jax.jit(jax.vmap(lambda key: mix.random_box(key, 8, 6, 0.5)))(keys)
  r0, c0, r1, c1 = (np.asarray(edge) for edge in boxes)
  assert np.all((r0 >= 0) & (r0 <= r1) & (r1 <= 8))
  assert np.all((c0 >= 0) & (c0 <= c1) & (c1 <= 6))
  assert (r1 - r0).max() == 4  # 2 × (int(8 × sqrt(0.5)) // 2)
  assert (c1 - c0).max() == 4
