"""The views of a batch, and AutoAugment's dealing."""

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
  multi_crop as views,
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
  return policies.finetune_views(key, images, FINETUNE, MEAN, STD)


def _in_range(normalised):
  """Values are finite and, back in RGB, within [0, 1]."""
  rgb = np.asarray(normalised) * np.array(STD) + np.array(MEAN)
  assert np.all(np.isfinite(rgb))
  return rgb.min() > -1e-5 and rgb.max() < 1 + 1e-5


def test_multi_crop_shapes_and_range():
  both = _crop(jax.random.key(0), _images(4))
  assert [view.shape for view in both] == [(2, 4, 16, 16, 3), (3, 4, 8, 8, 3)]
  assert all(view.dtype == jnp.float32 and _in_range(view) for view in both)
  assert np.any(np.asarray(both[0][0]) != np.asarray(both[0][1]))


def test_multi_crop_is_a_function_of_the_key():
  images = _images(4)
  first, again = (_crop(jax.random.key(1), images) for _ in range(2))
  other = _crop(jax.random.key(2), images)
  for a, b, c in zip(first, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.all(np.any(np.asarray(a != c), axis=(2, 3, 4)))


def test_an_image_does_not_see_the_others():
  images = _images(4)
  changed = images.copy()
  changed[[0, 2, 3]] = 255 - changed[[0, 2, 3]]
  key = jax.random.key(3)
  for a, b in zip(_crop(key, images), _crop(key, changed), strict=True):
    np.testing.assert_array_equal(a[:, 1], b[:, 1])
  images = _images(30)
  changed = 255 - images
  changed[1] = images[1]
  a, b = (_finetune(key, batch) for batch in (images, changed))
  np.testing.assert_array_equal(a[1], b[1])
  assert np.any(np.asarray(a[2]) != np.asarray(b[2]))


def test_no_local_views():
  plain = types.SimpleNamespace(**{**vars(VIEWS), "local_views": 0})
  shapes = jax.eval_shape(
    lambda key, images: views.multi_crop(key, images, plain, MEAN, STD),
    jax.random.key(0),
    _images(4),
  )
  assert [shape.shape for shape in shapes] == [
    (2, 4, 16, 16, 3),
    (0, 4, 8, 8, 3),
  ]


def test_views_do_what_their_draws_say():
  image = jnp.asarray(_images(2)[1], jnp.float32) / 255
  run = jax.jit(
    lambda draws: views.view(
      draws,
      image,
      VIEWS,
      size=16,
      scale=(1.0, 1.0),
      blur_probability=0.5,
      solarize_probability=0.5,
    )
  )
  draws = np.full(views.DRAWS, 0.5, np.float32)  # ratio 1: the whole image
  none = np.array([0.9] * 5 + [0.5], np.float32)
  cases = {
    0: lambda image: image[:, ::-1],
    2: color.grayscale,
    3: lambda image: color.gaussian_blur(image, 1.05),
    4: lambda image: color.solarize(image, 128),
  }
  draws[28:] = none
  np.testing.assert_allclose(run(draws), image, atol=1e-6)
  for place, operation in cases.items():
    draws[28:] = none
    draws[28 + place] = 0.1
    np.testing.assert_allclose(run(draws), operation(image), atol=1e-6)


def test_evaluation_view_only_normalises():
  images = _images(2)
  ours = views.evaluation_view(jnp.asarray(images), MEAN, STD)
  expected = (images / 255 - np.array(MEAN)) / np.array(STD)
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_finetune_views_erase_with_the_raw_means():
  images = np.full((256, 8, 8, 3), 200, np.uint8)
  always = types.SimpleNamespace(**vars(FINETUNE))
  always.autoaugment, always.crop_padding = "", 0
  out = np.asarray(
    jax.jit(
      lambda key: policies.finetune_views(key, images, always, MEAN, STD)
    )(jax.random.key(0))
  )
  plain = (200 / 255 - np.array(MEAN)) / np.array(STD)
  kept = np.all(np.abs(out - plain) < 1e-5, axis=-1)
  np.testing.assert_allclose(
    out[~kept], np.broadcast_to(MEAN, out[~kept].shape), rtol=1e-6
  )
  assert abs(np.mean(~kept.all(axis=(1, 2))) - 0.25) < 0.09


def test_finetune_views_shape_and_range():
  out = _finetune(jax.random.key(0), _images(30))
  assert out.shape == (30, 16, 16, 3)
  assert out.dtype == jnp.float32
  assert _in_range(out)  # the erased pixels too, as the means are not large


def _marked(policy, monkeypatch):
  """Runs the dealing with operations that add to a pixel which they were:
  operation k adds 20^step × (k + 1)."""
  names = list(policies.OPERATIONS)
  monkeypatch.setattr(
    policies,
    "apply_operation",
    lambda name, image, level, sign: image * 20 + names.index(name) + 1,
  )
  count = 30
  images = jnp.zeros((count, 1, 1, 1))
  keys = jax.random.split(jax.random.key(7), 400)
  draws = np.random.default_rng(8).uniform(size=(400, count, 4))
  run = jax.jit(
    jax.vmap(lambda key, draws: policies.deal(key, draws, images, policy))
  )
  marks = np.asarray(run(keys, jnp.asarray(draws, jnp.float32))).astype(int)[
    ..., 0, 0, 0
  ]
  return names, marks


@pytest.mark.parametrize(
  ("policy", "table"),
  [*[(policy, 64) for policy in sorted(policies.POLICIES)], ("cifar", 10)],
)
def test_every_image_gets_each_subpolicy_as_often(policy, table, monkeypatch):
  monkeypatch.setattr(policies, "TABLE", table)
  names, marks = _marked(policy, monkeypatch)
  expected = collections.Counter()
  for (p1, first, _), (p2, second, _) in policies.POLICIES[policy]:
    a, b = names.index(first) + 1, names.index(second) + 1
    expected[0] += (1 - p1) * (1 - p2) / 25
    expected[a] += p1 * (1 - p2) / 25
    expected[b] += (1 - p1) * p2 / 25
    expected[a * 20 + b] += p1 * p2 / 25
  # Over all images, and for the last one alone.
  for chosen, tolerance in ((marks.reshape(-1), 0.01), (marks[:, -1], 0.07)):
    assert set(np.unique(chosen)) <= set(expected)
    for mark, probability in expected.items():
      assert abs(np.mean(chosen == mark) - probability) < tolerance


@pytest.mark.parametrize("count", [1, 25, 26, 128])
def test_dealing_returns_every_image_to_its_place(count, monkeypatch):
  monkeypatch.setattr(
    policies, "apply_operation", lambda name, image, level, sign: image
  )
  images = jnp.arange(count * 12.0).reshape(count, 2, 2, 3)
  run = jax.jit(lambda key: policies.autoaugment(key, images, "cifar"))
  out = run(jax.random.key(0))
  np.testing.assert_array_equal(out, images)


def test_an_operation_takes_level_and_sign():
  image = jnp.asarray(_images(2)[1], jnp.float32) / 255

  @jax.jit
  def run(image, level, sign):
    apply = policies.apply_operation
    names = ("translateX", "brightness", "rotate")
    return [apply(name, image, level, sign) for name in names]

  @jax.jit
  def expected(image):
    return [
      geometry.translate_x(image, -4 / 9 * 150 / 331),
      color.brightness(image, 0.6),
      geometry.rotate(image, 40 / 3),
    ]

  pairs = zip(run(image, 4, -1), expected(image), strict=True)
  for a, b in pairs:
    np.testing.assert_array_equal(a, b)
