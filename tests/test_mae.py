"""Masked autoencoding: hidden patches are predicted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_ssl_jax import models, recipes
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import mae as masking
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.train import losses, mae, timing

MODEL = models.build("vit", image_size=16, embed_dim=16, **tiny.SIZES["vit"])
IMAGES, OTHERS = np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3))


encode = jax.jit(functools.partial(MODEL.apply, method="encode_visible"))


@pytest.fixture(scope="module")
def params():
  return {"params": models.init(MODEL, jax.random.key(0))}


def test_a_quarter_of_the_patches_is_visible():
  visible = np.asarray(masking.random_masking(jax.random.key(0), (50, 2), 16))
  assert visible.shape == (50, 2, 4)
  assert all(len(set(row)) == 4 for row in visible.reshape(-1, 4))
  assert set(visible.flat) == set(range(16))


def test_hidden_patches_are_not_seen(params):
  """Visible are patches 0 and 5, of rows 0 to 3 and 4 to 7."""
  visible, changed = np.array([[0, 5]] * 2), OTHERS.copy()
  changed[:, :4, :4] = IMAGES[:, :4, :4]
  changed[:, 4:8, 4:8] = IMAGES[:, 4:8, 4:8]
  tokens = encode(params, IMAGES, visible)
  assert tokens.shape == (2, 3, 16)
  np.testing.assert_allclose(
    tokens, encode(params, changed, visible), atol=1e-6
  )
  assert np.abs(encode(params, changed, visible + 1) - tokens).max() > 0.01


def test_all_patches_in_any_order_are_the_whole_image(params):
  order = np.stack([np.random.default_rng(1).permutation(16)] * 2)
  features = jax.jit(functools.partial(MODEL.apply, method="features"))
  tokens = encode(params, IMAGES, order)
  np.testing.assert_allclose(tokens[:, 0], features(params, IMAGES), atol=1e-5)


def test_the_decoder_puts_patches_where_they_were():
  decoder = masking.PixelDecoder(16, 48, num_heads=2, mlp_ratio=2.0)
  tokens = np.float32(np.random.default_rng(0).normal(size=(1, 4, 8)))
  visible = np.array([[2, 9, 4]])
  variables = jax.jit(decoder.init)(jax.random.key(0), tokens, visible)
  decode = jax.jit(functools.partial(decoder.apply, variables))
  pixels = decode(tokens, visible)
  assert pixels.shape == (1, 16, 48)
  turned = decode(tokens[:, [0, 3, 1, 2]], visible[:, [2, 0, 1]])
  np.testing.assert_allclose(pixels, turned, atol=1e-6)
  elsewhere = decode(tokens, visible[:, ::-1])
  assert np.abs(elsewhere - pixels).max() > 1e-3


def test_the_loss_is_of_hidden_patches_alone():
  rng = np.random.default_rng(0)
  patches = rng.normal(3, 2, (2, 4, 12)).astype(np.float32)
  normal = patches - patches.mean(-1, keepdims=True)
  normal /= patches.std(-1, keepdims=True)
  predicted = normal.copy()
  predicted[0, 1] += 2  # visible
  predicted[0, 2] += 1
  predicted[1, 3] += 3
  visible = jnp.array([[1], [0]])
  loss = losses.reconstruction(predicted, patches, visible)
  assert loss == pytest.approx((1 + 9) / 6, rel=1e-4)


def test_what_is_smooth_is_learnt(pretrain_tiny):
  """Images that brighten along some direction."""
  config = pretrain_tiny
  config.update(objective="mae", mean=(0.5,) * 3, std=(0.25,) * 3)
  config.model.update(patch_size=2, embed_dim=16)
  config.optim.update(learning_rate=0.05, warmup_epochs=0)
  init, step = timing.stage(config, mae.make_stage, 2)
  angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (16, 1, 1, 1))
  rows, columns = np.mgrid[:8, :8][:, None, :, :, None]
  ramps = rows * np.sin(angles) + columns * np.cos(angles)
  ramps = np.broadcast_to(127 + 12 * ramps, (16, 8, 8, 3)).astype(np.uint8)
  state, step = init(), jax.jit(step)
  values = []
  for _ in range(100):
    state, metrics = step(state, {"image": ramps})
    values.append(float(metrics["loss"]))
  assert np.mean(values[-5:]) < 0.7 * values[0]
  assert not {"teacher_kl", "teacher_entropy"} & set(metrics)


def test_it_is_for_vit_alone():
  config = recipes.get("pretrain", "swin,cifar10")
  config.objective = "mae"
  with pytest.raises(UserError, match="is for vit, not for swin"):
    schema.check(config)
