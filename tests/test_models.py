"""Properties of the models that golden numbers do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import attention, layers, patches

SMALL = {
  "image_size": 16,
  "patch_size": 4,
  "embed_dim": 8,
  "depth": 3,
  "num_heads": 2,
}


@pytest.fixture(scope="module")
def vit():
  model = models.build("vit", num_classes=5, drop_path_rate=0.5, **SMALL)
  return model, models.init(model, jax.random.key(0))


def test_published_sizes():
  assert models.count(models.build("vit", num_classes=10)) == 2_697_610


def test_shapes_at_every_image_size(vit):
  model, params = vit
  for side in (8, 16, 24):
    images = jnp.ones((2, side, side, 3))
    assert model.apply({"params": params}, images).shape == (2, 5)
    features = model.apply({"params": params}, images, method="features")
    assert features.shape == (2, 8)


def test_attention_of_any_block_is_a_distribution(vit):
  model, params = vit
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  every = [
    model.apply({"params": params}, images, block, method="attention")
    for block in range(3)
  ]
  for weights in every:
    assert weights.shape == (2, 2, 17, 17)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  last = model.apply({"params": params}, images, method="attention")
  np.testing.assert_array_equal(last, every[-1])
  assert not np.allclose(every[0], every[1])


def test_drop_path_is_random_in_training_alone(vit):
  model, params = vit
  images = jnp.ones((1, 16, 16, 3))

  def train(seed):
    return model.apply(
      {"params": params},
      images,
      train=True,
      rngs={"drop_path": jax.random.key(seed)},
    )

  outputs = [train(seed) for seed in range(6)]
  assert len({float(x[0, 0]) for x in outputs}) > 1
  np.testing.assert_array_equal(train(3), outputs[3])
  np.testing.assert_array_equal(
    model.apply({"params": params}, images),
    model.apply({"params": params}, images),
  )


def test_drop_path_keeps_the_mean():
  masks = layers.drop_path_masks(jax.random.key(0), [0.0, 0.25], (4000, 2))
  masks = np.asarray(masks)
  assert masks.shape == (2, 2, 4000, 2)
  assert (masks[0] == 1).all()
  assert set(np.unique(masks[1])) == {0, np.float32(1 / 0.75)}
  assert abs((masks[1] == 0).mean() - 0.25) < 0.03


@pytest.mark.parametrize(
  ("function", "shapes"),
  [
    (layers.gelu, [(4, 5)]),
    (layers.standardize, [(4, 5)]),
    (attention.attend, [(1, 2, 3, 4)] * 3 + [(1, 1, 3, 3)]),
  ],
)
def test_own_derivatives_against_finite_differences(function, shapes):
  keys = jax.random.split(jax.random.key(0), len(shapes))
  args = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
  test_util.check_grads(function, args, 1, modes="rev", atol=1e-2, rtol=1e-2)


def test_half_precision_stays_near(vit):
  model, params = vit
  half = model.clone(dtype=jnp.bfloat16)
  images = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
  exact = model.apply({"params": params}, images)
  near = half.apply({"params": params}, images)
  assert near.dtype == jnp.float32
  assert np.abs(near - exact).max() < 0.03 * np.abs(exact).max() + 0.01


def test_resizing_positions_keeps_what_it_must():
  same = jax.random.normal(jax.random.key(0), (1, 16, 3))
  ours = patches.resize_position_embedding(same, (4, 4), (4, 4))
  np.testing.assert_array_equal(ours, same)
  constant = jnp.ones((1, 16, 3))
  for grid in ((2, 2), (7, 3)):
    ours = patches.resize_position_embedding(constant, (4, 4), grid)
    assert ours.shape == (1, grid[0] * grid[1], 3)
    np.testing.assert_allclose(ours, 1, rtol=1e-5)


def test_head_outputs_are_cosines():
  head = models.ProjectionHead(32, 16, 8)
  x = jax.random.normal(jax.random.key(0), (5, 4))
  params = head.init(jax.random.key(1), x)["params"]
  outputs = head.apply({"params": params}, x)
  assert outputs.shape == (5, 32)
  assert np.abs(outputs).max() <= 1 + 1e-6
  larger = jax.tree.map(lambda p: p, params)
  larger["last_layer"] = {"kernel": 7 * params["last_layer"]["kernel"]}
  np.testing.assert_allclose(
    head.apply({"params": larger}, x), outputs, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ({"name": "resnet"}, "unknown architecture 'resnet'"),
    ({"patch": 4}, "did you mean 'patch_size'"),
    ({"image_size": 30}, "model.image_size=30 is not a multiple"),
    ({"image_size": 2}, "smaller than a patch"),
    ({"num_heads": 5}, "5 heads do not divide a width of 192"),
  ],
)
def test_sizes_that_do_not_fit(sizes, words):
  with pytest.raises(UserError, match=words):
    models.build(**{"name": "vit"} | sizes)
