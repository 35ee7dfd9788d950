"""The views of a batch, and AutoAugment's sub-policies."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax.augment import (
  autoaugment as policies,
  color,
  geometry,
  pipelines as views,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
VIEWS = types.SimpleNamespace(
  global_size=16,
  local_size=8,
  local_views=3,
  global_scale=(0.7, 1.0),
  local_scale=(0.2, 0.5),
  color_jitter=(0.4, 0.4, 0.2, 0.1),
  color_jitter_probability=0.8,
  grayscale_probability=0.2,
  blur_probability=(1.0, 0.1, 0.5),
  solarize_probability=0.2,
  flip_probability=0.5,
)
FINETUNE = types.SimpleNamespace(
  flip_probability=0.5,
  crop_padding=2,
  autoaugment="cifar",
  erasing_probability=0.25,
  erasing_area=(0.02, 0.4),
  erasing_aspect=(0.3, 1 / 0.3),
)


def _images(count, size=16):
  images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3))
  images[0] = 90  # a constant image is the one that divides by zero
  return images.astype(np.uint8)


@jax.jit
def _crop(key, images):
  return views.multi_crop(key, images, VIEWS, MEAN, STD)


@jax.jit
def _finetune(key, images):
  return views.supervised(key, images, FINETUNE, MEAN, STD)


def _in_range(normalised):
  """Values are finite and, back in RGB, within [0, 1]."""
  rgb = np.asarray(normalised) * np.array(STD) + np.array(MEAN)
  assert np.all(np.isfinite(rgb))
  return rgb.min() > -1e-5 and rgb.max() < 1 + 1e-5


def test_multi_crop_is_a_function_of_the_key():
  images = _images(4)
  both, again = (_crop(jax.random.key(1), images) for _ in range(2))
  assert [view.shape for view in both] == [(4, 2, 16, 16, 3), (4, 3, 8, 8, 3)]
  assert all(view.dtype == jnp.float32 and _in_range(view) for view in both)
  assert np.any(np.asarray(both[0][:, 0] != both[0][:, 1]))
  other = _crop(jax.random.key(2), images)
  for a, b, c in zip(both, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.all(np.any(np.asarray(a != c), axis=(2, 3, 4)))


def test_an_image_does_not_see_the_others():
  images = _images(4)
  changed = images.copy()
  changed[[0, 2, 3]] = 255 - changed[[0, 2, 3]]
  key = jax.random.key(3)
  for a, b in zip(_crop(key, images), _crop(key, changed), strict=True):
    np.testing.assert_array_equal(a[1], b[1])
  images = _images(30)
  changed = 255 - images
  changed[1] = images[1]
  a, b = (_finetune(key, batch) for batch in (images, changed))
  np.testing.assert_array_equal(a[1], b[1])
  assert np.any(np.asarray(a[2]) != np.asarray(b[2]))


def test_a_view_takes_each_step_with_its_probability():
  image = jnp.asarray(_images(2)[1], jnp.float32) / 255
  names = ("flip", "color_jitter", "grayscale")

  @jax.jit
  def run(key, chances):
    settings = {
      f"{name}_probability": chance
      for name, chance in zip(names, chances[:3], strict=True)
    }
    settings["color_jitter"] = (0.0, 0.0, 0.0, 0.0)
    settings = types.SimpleNamespace(**settings)
    return views.view(
      key, image, settings, 8, (0.5, 1.0), chances[3], chances[4]
    )

  def one(place):
    return jnp.zeros(5).at[place].set(1.0)

  key = jax.random.key(0)
  plain = run(key, jnp.zeros(5))
  crop_key = jax.random.split(key)[0]  # of the first step
  cropped = geometry.random_resized_crop(crop_key, image, 8, (0.5, 1.0))
  expected = {
    0: plain[:, ::-1],
    1: color.hue(plain, 0.0),  # which rounds to Pillow's 8-bit HSV
    2: color.grayscale(plain),
    4: color.solarize(plain, 128),
  }
  np.testing.assert_allclose(plain, cropped, atol=1e-6)
  for place, operation in expected.items():
    np.testing.assert_allclose(run(key, one(place)), operation, atol=1e-6)
  blurred = run(key, one(3))
  assert (
    jnp.abs(jnp.diff(blurred, axis=1)).mean()
    < 0.8 * jnp.abs(jnp.diff(plain, axis=1)).mean()
  )


def test_evaluation_view_only_normalises():
  images = _images(2)
  ours = views.evaluation_view(jnp.asarray(images), MEAN, STD)
  expected = (images / 255 - np.array(MEAN)) / np.array(STD)
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_supervised_views_erase_with_the_raw_means():
  images = np.full((256, 8, 8, 3), 200, np.uint8)
  always = types.SimpleNamespace(**vars(FINETUNE))
  always.autoaugment, always.crop_padding = "", 0
  out = np.asarray(
    jax.jit(lambda key: views.supervised(key, images, always, MEAN, STD))(
      jax.random.key(0)
    )
  )
  plain = (200 / 255 - np.array(MEAN)) / np.array(STD)
  kept = np.all(np.abs(out - plain) < 1e-5, axis=-1)
  np.testing.assert_allclose(
    out[~kept], np.broadcast_to(MEAN, out[~kept].shape), rtol=1e-6
  )
  assert abs(np.mean(~kept.all(axis=(1, 2))) - 0.25) < 0.09


@pytest.mark.parametrize("policy", sorted(policies.POLICIES))
def test_every_subpolicy_is_as_likely(policy, monkeypatch):
  """Operation k adds to a pixel which it was: 20^step × (k + 1)."""
  names = list(policies.OPERATIONS)
  monkeypatch.setattr(
    policies,
    "apply_operation",
    lambda name, image, level, sign: image * 20 + names.index(name) + 1,
  )
  keys = jax.random.split(jax.random.key(7), 12000)
  image = jnp.zeros((1, 1, 1))
  run = jax.jit(jax.vmap(lambda key: policies.autoaugment(key, image, policy)))
  marks = np.asarray(run(keys)).astype(int).reshape(-1)
  expected = collections.Counter()
  for (p1, first, _), (p2, second, _) in policies.POLICIES[policy]:
    a, b = names.index(first) + 1, names.index(second) + 1
    expected[0] += (1 - p1) * (1 - p2) / 25
    expected[a] += p1 * (1 - p2) / 25
    expected[b] += (1 - p1) * p2 / 25
    expected[a * 20 + b] += p1 * p2 / 25
  assert set(np.unique(marks)) <= set(expected)
  for mark, probability in expected.items():
    assert abs(np.mean(marks == mark) - probability) < 0.01
