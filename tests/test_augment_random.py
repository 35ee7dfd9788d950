"""How the random operations on one image are distributed."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.augment import color, geometry


def test_random_crops_follow_their_distribution():
  height, width, scale = 32, 24, (0.2, 0.5)
  draws = np.random.default_rng(0).uniform(size=(4000, 11, 2))
  draws = jnp.asarray(draws, jnp.float32)
  boxes = jax.jit(
    jax.vmap(lambda draws: geometry.crop_box(draws, height, width, scale))
  )(draws)
  top, left, h, w = (np.asarray(edge) for edge in boxes)
  for edge in (top, left, h, w):
    np.testing.assert_array_equal(edge, np.round(edge))
  assert np.all((top >= 0) & (left >= 0) & (h >= 1) & (w >= 1))
  assert np.all((top + h <= height) & (left + w <= width))
  share = h * w / (height * width)
  assert abs(share.mean() - 0.35) < 0.01
  assert share.min() > 0.17
  assert share.max() < 0.53
  aspect = np.log(w / h)
  assert abs(aspect.mean()) < 0.02
  assert np.abs(aspect).max() < np.log(4 / 3) + 0.15


def test_a_crop_that_cannot_fit_takes_the_centre():
  draws = jnp.full((11, 2), 0.5)
  crop = jax.jit(lambda draws: geometry.crop_box(draws, 10, 40, (1.0, 1.0)))
  box = crop(draws)
  assert [int(edge) for edge in box] == [0, 13, 10, 13]


def test_flip_and_padded_crop():
  image = jnp.arange(6 * 5 * 3, dtype=jnp.float32).reshape(6, 5, 3) / 90 + 0.01
  keys = jax.random.split(jax.random.key(3), 2000)
  flip = jax.jit(
    jax.vmap(lambda key: geometry.random_flip(key, image, 0.3)[0, 0, 0])
  )(keys)
  assert abs(np.mean(np.asarray(flip) != image[0, 0, 0]) - 0.3) < 0.04

  crops = jax.jit(jax.vmap(lambda key: geometry.pad_crop(key, image, 2)))(keys)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
  counts = [
    np.sum(np.all(np.asarray(crops) == window, axis=(1, 2, 3)))
    for window in windows
  ]
  assert sum(counts) == len(keys)
  assert min(counts) > 40


def test_random_erasing():
  image = jnp.zeros((20, 16, 3))
  keys = jax.random.split(jax.random.key(4), 2000)
  fill = (0.5, 0.6, 0.7)
  erased = np.asarray(
    jax.jit(
      jax.vmap(lambda key: geometry.random_erasing(key, image, 0.25, fill=fill))
    )(keys)
  )
  mask = erased[..., 0] > 0
  np.testing.assert_allclose(erased[mask][0], fill, rtol=1e-6)
  some = mask.any(axis=(1, 2))
  assert abs(some.mean() - 0.25) < 0.04
  rows, columns = mask.any(axis=2).sum(axis=1), mask.any(axis=1).sum(axis=1)
  np.testing.assert_array_equal(rows * columns, mask.sum(axis=(1, 2)))
  share = (rows * columns)[some] / 320
  assert rows.max() < 20
  assert columns.max() < 16
  assert share.min() > 0.005
  assert share.max() < 0.45


def test_all_orders_of_the_colour_jitter_are_as_likely():
  draws = np.random.default_rng(5).uniform(size=(2, 12000))
  draws = jnp.asarray(draws, jnp.float32)
  position, order = jax.vmap(color._order)(*draws)
  code = np.asarray(position) * 27 + np.asarray(order) @ np.array([9, 3, 1])
  _, counts = np.unique(code, return_counts=True)
  assert len(counts) == 24
  assert counts.min() > 400
  assert counts.max() < 600


def test_colour_jitter_applies_its_operations_in_the_drawn_order():
  image = np.random.default_rng(6).integers(0, 256, (8, 8, 3))
  image = jnp.asarray(image, jnp.float32) / 255
  jitter = jax.jit(lambda draws: color.jitter(draws, image, 0.4, 0.4, 0.2, 0.1))
  # Position 1.5 / 4 puts hue after one operation; order 3.5 / 6 is (1, 2, 0).
  ours = jitter(jnp.array([0.9, 0.2, 0.7, 0.8, 1.5 / 4, 3.5 / 6]))

  @jax.jit
  def one_by_one(image):
    image = color.contrast(image, 0.6 + 0.2 * 0.8)
    image = color.hue(image, 0.1 * 0.6)
    image = color.saturation(image, 0.8 + 0.7 * 0.4)
    return color.brightness(image, 0.6 + 0.9 * 0.8)

  expected = one_by_one(image)
  np.testing.assert_allclose(ours, expected, atol=1.01 / 255)
