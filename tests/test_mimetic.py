"""Mimetic initialisation."""

import jax
import numpy as np
import pytest

from vit_ssl_jax import models, recipes
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import mimetic
from vit_ssl_jax.run import schema


@pytest.fixture(scope="module")
def vit():
  return models.build(
    "vit", num_classes=3, image_size=16, patch_size=4, embed_dim=32, depth=2,
    num_heads=2,
  )  # fmt: skip


def test_attention_begins_near_multiples_of_the_identity(vit):
  params = models.init(vit, jax.random.key(0), mimetic_init=True)
  attention = params["blocks_1"]["attn"]
  q, k, v = np.split(np.asarray(attention["qkv"]["kernel"]), 3, axis=1)
  mixing = v @ attention["proj"]["kernel"]
  assert np.trace(mixing) / 32 == pytest.approx(-0.4, abs=0.05)
  for head in (slice(0, 16), slice(16, 32)):
    product = q[:, head] @ k[:, head].T
    # Of rank 16, the nearest to a matrix with 0.2 on its diagonal.
    assert np.linalg.matrix_rank(product) == 16
    assert 0.1 < np.trace(product) / 32 < 0.3
    others = product - np.diag(np.diag(product))
    assert np.abs(others).mean() < np.diag(product).mean() / 2


def test_factors_are_the_nearest_of_their_rank():
  matrix = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
  a, b = mimetic.factors(matrix, 6)
  np.testing.assert_allclose(a @ b.T, matrix, atol=1e-5)
  a, b = mimetic.factors(matrix, 3)
  u, s, vt = np.linalg.svd(matrix)
  np.testing.assert_allclose(a @ b.T, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)


def test_the_rest_and_the_default_stay(vit):
  plain = models.init(vit, jax.random.key(0))
  made = models.init(vit, jax.random.key(0), mimetic_init=True)
  assert jax.tree.structure(plain) == jax.tree.structure(made)
  for name in ("patch_embed", "cls_token", "norm", "head"):
    jax.tree.map(np.testing.assert_array_equal, plain[name], made[name])
  first = np.asarray(made["blocks_0"]["attn"]["qkv"]["kernel"])
  second = np.asarray(made["blocks_1"]["attn"]["qkv"]["kernel"])
  assert not np.array_equal(first, second)
  assert np.abs(made["pos_embed"][0, 1:]).max() == pytest.approx(0.3, abs=0.01)


def test_it_is_for_vit_alone():
  config = recipes.get("pretrain", "swin,cifar10")
  config.mimetic_init = True
  with pytest.raises(UserError, match="is for vit, not for swin"):
    schema.check(config)
