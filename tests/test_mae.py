"""Masked autoencoding: hidden patches are predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax import models, recipes
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.train import losses, pretrain, timing


@pytest.fixture(scope="module")
def vit():
  return models.build(
    "vit", image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2
  )


@pytest.fixture(scope="module")
def params(vit):
  return {"params": models.init(vit, jax.random.key(0))}


def images(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, 16, 16, 3)).astype(np.float32)


def test_a_quarter_of_the_patches_is_kept():
  kept = np.asarray(models.random_masking(jax.random.key(0), (50, 2), 16))
  assert kept.shape == (50, 2, 4)
  assert all(len(set(row)) == 4 for row in kept.reshape(-1, 4))
  assert set(kept.flat) == set(range(16))


def test_hidden_patches_are_not_seen(vit, params):
  """Those kept are patches 0 and 5, of rows 0 to 3 and 4 to 7."""
  x, kept = images(), jnp.array([[0, 5]] * 2)
  changed = images(1)
  changed[:, :4, :4] = x[:, :4, :4]
  changed[:, 4:8, 4:8] = x[:, 4:8, 4:8]
  one, other = (
    vit.apply(params, given, kept, method="encode_visible")
    for given in (x, changed)
  )
  assert one.shape == (2, 3, 16)
  np.testing.assert_allclose(one, other, atol=1e-6)
  seen = vit.apply(params, changed, kept + 1, method="encode_visible")
  assert np.abs(seen - one).max() > 0.01


def test_all_patches_in_any_order_are_the_whole_image(vit, params):
  order = jax.random.permutation(jax.random.key(1), 16)
  kept = jnp.broadcast_to(order, (2, 16))
  tokens = vit.apply(params, images(), kept, method="encode_visible")
  features = vit.apply(params, images(), method="features")
  np.testing.assert_allclose(tokens[:, 0], features, atol=1e-5)


def test_the_decoder_puts_patches_where_they_were():
  decoder = models.PixelDecoder(16, 48, num_heads=2, mlp_ratio=2.0)
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.normal(size=(1, 4, 8)), jnp.float32)
  kept = jnp.array([[2, 9, 4]])
  variables = decoder.init(jax.random.key(0), tokens, kept)
  found = decoder.apply(variables, tokens, kept)
  assert found.shape == (1, 16, 48)
  turned = decoder.apply(variables, tokens[:, [0, 3, 1, 2]], kept[:, [2, 0, 1]])
  np.testing.assert_allclose(found, turned, atol=1e-6)
  elsewhere = decoder.apply(variables, tokens, kept[:, ::-1])
  assert np.abs(elsewhere - found).max() > 1e-3


def test_the_loss_is_of_hidden_patches_alone():
  rng = np.random.default_rng(0)
  patches = rng.normal(3, 2, (2, 4, 12)).astype(np.float32)
  normal = patches - patches.mean(-1, keepdims=True)
  normal /= patches.std(-1, keepdims=True)
  predicted = normal.copy()
  predicted[0, 1] += 2  # kept
  predicted[0, 2] += 1
  predicted[1, 3] += 3
  kept = jnp.array([[1], [0]])
  found = losses.reconstruction(predicted, patches, kept)
  assert found == pytest.approx((1 + 9) / 6, rel=1e-4)


def test_what_is_smooth_is_learnt(pretrain_tiny):
  """Images that brighten along some direction."""
  config = pretrain_tiny
  config.update(objective="mae", mean=(0.5,) * 3, std=(0.25,) * 3)
  config.model.update(patch_size=2, embed_dim=16)
  config.optim.update(learning_rate=0.05, warmup_epochs=0)
  init, step = timing.stage(config, pretrain.make_stage, 2)
  angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (16, 1, 1, 1))
  rows, columns = np.mgrid[:8, :8][:, None, :, :, None]
  ramps = rows * np.sin(angles) + columns * np.cos(angles)
  ramps = np.broadcast_to(127 + 12 * ramps, (16, 8, 8, 3)).astype(np.uint8)
  state, step = init(), jax.jit(step)
  values = []
  for _ in range(100):
    state, found = step(state, {"image": ramps})
    values.append(float(found["loss"]))
  assert np.mean(values[-5:]) < 0.7 * values[0]
  assert not {"teacher_kl", "teacher_entropy"} & set(found)


def test_it_is_for_vit_alone():
  config = recipes.get("pretrain", "swin,cifar10")
  config.objective = "mae"
  with pytest.raises(UserError, match="is for vit, not for swin"):
    schema.check(config)
