"""Masked autoencoding (He et al., 2022): hidden patches are to be predicted.

The encoder sees a quarter of an image's patches, by `encode_kept` of ViT; a
small decoder predicts the pixels of all of them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax.models import layers
from vit_ssl_jax.models.vit import Attention


def draw_kept(key, shape, patches):
  """Draws a quarter of the patches, which are not hidden.

  Args:
    key: PRNG key.
    shape: of the images, such as (B, V).
    patches: N, of an image.

  Returns:
    (*shape, N // 4) int32, numbers of patches.
  """
  return jnp.argsort(jax.random.uniform(key, (*shape, patches)))[
    ..., : patches // 4
  ]


class PixelDecoder(nn.Module):
  """One transformer block, and a linear layer to the pixels of a patch.

  Attributes:
    patches: N, of an image.
    pixels: P, values of a patch.
    num_heads: attention heads.
    mlp_ratio: hidden width of the MLP over D.
    dtype: type of the arithmetic.
    fast: whether the device's kernels compute it.
  """

  patches: int
  pixels: int
  num_heads: int
  mlp_ratio: float
  dtype: jnp.dtype = jnp.float32
  fast: bool = True

  @nn.compact
  def __call__(self, tokens, kept):
    """Predicts all patches from some.

    Args:
      tokens: (B, 1 + k, D), the class token's before those of the patches.
      kept: (B, k) which patches these are.

    Returns:
      (B, N, P) float32.
    """
    D, init = tokens.shape[-1], nn.initializers.normal(0.02)
    mask_token = self.param("mask_token", init, (1, 1, D))
    pos_embed = self.param("pos_embed", init, (1, 1 + self.patches, D))
    place = jax.nn.one_hot(kept, self.patches, dtype=tokens.dtype)
    hidden = 1 - jnp.sum(place, 1)[..., None]
    patches = place.swapaxes(1, 2) @ tokens[:, 1:]
    patches += hidden * mask_token.astype(tokens.dtype)
    x = jnp.concatenate([tokens[:, :1], patches], 1)
    x += pos_embed.astype(x.dtype)
    attention = functools.partial(Attention, self.num_heads)
    block = layers.Block(
      attention, self.mlp_ratio, self.dtype, self.fast, name="blocks_0"
    )
    x = layers.LayerNorm(name="norm")(block(x)[:, 1:])
    pixels = layers.Dense(self.pixels, dtype=self.dtype, name="pixels")
    return pixels(x).astype(jnp.float32)
