"""Masked autoencoding (He et al., 2022): ViT's encoder is in vit.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax.models import layers

VISIBLE = 1 / 4  # of the patches


def random_masking(key, shape, patches):
  """Draws the visible patches, a quarter of all.

  Args:
    key: PRNG key.
    shape: of the images, such as (B, V).
    patches: N, number of patches of an image.

  Returns:
    (*shape, N // 4) int32 indices.
  """
  order = jnp.argsort(jax.random.uniform(key, (*shape, patches)))
  return order[..., : int(patches * VISIBLE)]


class PixelDecoder(nn.Module):
  """MAE decoder: one transformer block and a linear layer to pixels."""

  patches: int  # N, of an image
  pixels: int  # P, values of a patch
  num_heads: int
  mlp_ratio: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, visible):
    """Visible tokens -> the pixels of all patches.

    Args:
      tokens: (B, 1 + k, D), the class token first.
      visible: (B, k) indices of the visible patches.

    Returns:
      (B, N, P) float32.
    """
    D, init = tokens.shape[-1], nn.initializers.normal(0.02)
    mask_token = self.param("mask_token", init, (1, 1, D)).astype(tokens.dtype)
    pos_embed = self.param("pos_embed", init, (1, 1 + self.patches, D))
    # The transpose of `layers.take`.
    rows = jax.nn.one_hot(visible, self.patches, dtype=tokens.dtype)
    masked = 1 - jnp.sum(rows, 1)[..., None]
    patches = rows.swapaxes(1, 2) @ tokens[:, 1:] + masked * mask_token
    x = jnp.concatenate([tokens[:, :1], patches], 1)
    x += pos_embed.astype(x.dtype)
    attention = functools.partial(layers.Attention, self.num_heads)
    block = layers.Block(attention, self.mlp_ratio, self.dtype, name="blocks_0")
    x = layers.LayerNorm(name="norm")(block(x)[:, 1:])
    pixels = layers.Dense(self.pixels, dtype=self.dtype, name="pixels")
    return pixels(x).astype(jnp.float32)
