"""How the random operations on one image are distributed."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.augment import color, geometry


def test_random_crops_follow_their_distribution():
  height, width, scale = 32, 24, (0.2, 0.5)
  keys = jax.random.split(jax.random.key(0), 4000)
  boxes = jax.jit(
    jax.vmap(lambda key: geometry.random_crop_box(key, height, width, scale))
  )(keys)
  top, left, h, w = np.asarray(boxes).T
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
  box = geometry.random_crop_box(jax.random.key(0), 10, 40, (1.0, 1.0))
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
      jax.vmap(
        lambda key: geometry.random_erasing(
          key, image, 0.25, (0.02, 0.4), (0.3, 1 / 0.3), fill
        )
      )
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


def test_all_orders_of_the_colour_jitter_are_as_likely(monkeypatch):
  """Operation k writes k + 1 behind the digits that the others wrote."""
  for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
    monkeypatch.setattr(
      color, name, lambda image, amount, k=k: image * 10 + k + 1
    )
  keys = jax.random.split(jax.random.key(5), 12000)
  image = jnp.zeros((1, 1, 3))
  jitter = jax.jit(
    jax.vmap(lambda key: color.color_jitter(key, image, 0.8, (0.4,) * 4))
  )
  digits, counts = np.unique(jitter(keys)[:, 0, 0, 0], return_counts=True)
  assert len(digits) == 25
  assert abs(counts[0] / 12000 - 0.2) < 0.02  # left as it was
  assert all(sorted(str(int(digit))) == list("1234") for digit in digits[1:])
  assert counts[1:].min() > 320
  assert counts[1:].max() < 480


def test_colour_jitter_draws_its_amounts_from_their_ranges(monkeypatch):
  names = ("brightness", "contrast", "saturation", "hue")
  strengths = (0.4, 1.5, 0.2, 0.1)
  keys = jax.random.split(jax.random.key(6), 4000)
  image = jnp.zeros((1, 1, 4))
  for k, name in enumerate(names):
    monkeypatch.setattr(
      color, name, lambda image, amount, k=k: image.at[0, 0, k].add(amount)
    )
  jitter = jax.jit(
    jax.vmap(lambda key: color.color_jitter(key, image, 1.0, strengths))
  )
  amounts = np.asarray(jitter(keys))[:, 0, 0]
  low, high = np.array([0.6, 0, 0.8, -0.1]), np.array([1.4, 2.5, 1.2, 0.1])
  assert np.all((amounts >= low - 1e-6) & (amounts <= high + 1e-6))
  np.testing.assert_allclose(
    amounts.mean(axis=0), (low + high) / 2, atol=0.05 * (high - low).max()
  )
  spread = (high - low) / np.sqrt(12)
  np.testing.assert_allclose(amounts.std(axis=0), spread, rtol=0.05)


def test_blur_is_drawn_with_its_probability():
  image = np.random.default_rng(8).integers(0, 256, (8, 8, 3))
  image = jnp.asarray(image, jnp.float32) / 255
  keys = jax.random.split(jax.random.key(8), 2000)
  blur = jax.jit(jax.vmap(lambda key: color.random_blur(key, image, 0.3)))
  changed = np.any(np.abs(blur(keys) - image[None]) > 1e-3, axis=(1, 2, 3))
  # The smallest radii change nothing.
  assert 0.22 < changed.mean() < 0.33
