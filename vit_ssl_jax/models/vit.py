"""ViT (Dosovitskiy et al., 2021) in the small form that the paper trains."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import (
  layers,
  locality,
  old as kernels,
  positions,
  sizes,
)


class VisionTransformer(layers.Backbone):
  """ViT with a class token and position embeddings that fit any image size.

  Its features are the class token's. In its attention token 0 is the class
  token, the others are patches row by row. The drop path rate is that of the
  last block; the first has none and those between lie on a line.

  Attributes:
    depth: number of blocks.
    num_heads: attention heads a block.
  """

  depth: int = 9
  num_heads: int = 12

  def setup(self):
    D, init = self.embed_dim, nn.initializers.normal(0.02)
    self.patch_embed = layers.PatchEmbed(
      self.patch_size, D, self.has("spt"), dtype=self.dtype
    )
    self.cls_token = self.param("cls_token", init, (1, 1, D))
    self.pos_embed = self.param("pos_embed", init, (1, 1 + self.side**2, D))
    attention = functools.partial(Attention, self.num_heads, self.has("lsa"))
    block = (
      nn.remat(layers.Block, static_argnums=(3, 4))
      if self.remat
      else layers.Block
    )
    self.blocks = [
      block(attention, self.mlp_ratio, self.dtype, self.fast_attention)
      for _ in range(self.depth)
    ]
    self.norm = layers.LayerNorm()
    self.head = layers.classifier(self.num_classes)

  def tokens(self, images):
    """Images (B, H, W, 3) -> (B, 1 + h·w, D), with positions."""
    x = self.patch_embed(images)
    B, *grid, D = x.shape
    old = (self.side, self.side)
    of_patches = positions.resize(self.pos_embed[:, 1:], old, grid)
    x = x.reshape(B, -1, D) + of_patches.astype(x.dtype)
    token = (self.cls_token + self.pos_embed[:, :1]).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (B, 1, D)), x], 1)

  def encode(self, images, masks):
    """The class token's features; the last block computes no other token."""
    x = self.through_blocks(self.tokens(images), masks, class_only=True)
    return self.norm(x[:, 0])

  def encode_with_grid(self, images, masks):
    """As in `Backbone`."""
    x = self.through_blocks(self.tokens(images), masks)
    h, w = (n // self.patch_size for n in images.shape[1:3])
    return self.norm(x[:, 0]), x[:, 1:].reshape(len(x), h, w, -1)

  def encode_kept(self, images, kept):
    """Encodes images of which some patches alone are seen.

    (He et al., 2022, section 3, "MAE encoder".)

    Args:
      images: (B, H, W, 3).
      kept: (B, k) the numbers of these patches.

    Returns:
      (B, 1 + k, D) normalised tokens, the class token's first.
    """
    x = self.tokens(images)
    # A product, for its gradient adds up in the same order every time.
    place = jax.nn.one_hot(kept, x.shape[1] - 1, dtype=x.dtype)
    x = jnp.concatenate([x[:, :1], place @ x[:, 1:]], 1)
    return self.norm(self.through_blocks(x))

  def through_blocks(self, x, masks=None, class_only=False):
    """Tokens (B, N, D) through all blocks.

    Args:
      x: (B, N, D).
      masks: of drop path, or None.
      class_only: whether to return the class token alone, (B, 1, D).
    """
    for i, block in enumerate(self.blocks):
      first_only = class_only and i == self.depth - 1
      x = block(x, layers.masks_of(masks, i), False, first_only)
    return x

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, N), the softmax of one block.

    Row n is how token n attends to tokens m. `block` counts from 0 over all
    blocks, or from the end if negative.

    Raises:
      UserError: there is no such block.
    """
    *before, last = self.blocks[: self.index(block) + 1]
    x = self.tokens(images)
    for each in before:
      x = each(x, None, False, False)
    return last(x, None, True, False)

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def num_blocks(self):
    return self.depth

  @property
  def drop_path_rates(self):
    return np.linspace(0, self.drop_path_rate, self.depth)

  def check(self):
    super().check()
    sizes.check_heads(self, self.embed_dim, self.num_heads)


class Attention(nn.Module):
  """Multi-head self-attention (Vaswani et al., 2017, section 3.2).

  Attributes:
    num_heads: attention heads.
    local: locality self-attention (Lee et al., 2021).
    fast: whether the device's kernel computes it.
    dtype: type of the arithmetic.
  """

  num_heads: int
  local: bool = False
  fast: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, weights_only=False, first_only=False):
    """Tokens (B, N, D) -> (B, N, D), or the softmax (B, heads, N, N).

    Args:
      x: (B, N, D).
      weights_only: whether to return the softmax.
      first_only: whether to return the first token alone, (B, 1, D).
    """
    B, N, D = x.shape
    heads = self.num_heads
    dense = functools.partial(layers.Dense, dtype=self.dtype)
    to_qkv, proj = dense(3 * D, name="qkv"), dense(D, name="proj")
    scale, bias = (D // heads) ** -0.5, None
    if self.local:
      scale, bias = 1.0, locality.diagonal_mask(N)[None, None]
    if first_only:
      q = to_qkv(x[:, :1], slice(D))
      k, v = to_qkv(x, slice(D, 2 * D)), to_qkv(x, slice(2 * D, 3 * D))
      q, k, v = (y.reshape(B, -1, heads, D // heads) for y in (q, k, v))
      if self.local:
        q *= locality.learned_scale(self, D, heads)[None, None]
        bias = bias[..., :1, :]
      x = kernels.attention(q, k, v, bias, scale, self.fast)
      return proj(x.reshape(B, 1, D))
    qkv, qkv_bias = to_qkv(x, split_bias=True)
    if self.local or weights_only:
      qkv, qkv_bias = kernels.add_bias(qkv, qkv_bias), None
    if self.local:
      qkv = locality.scale_queries(self, qkv, heads)
    if weights_only:
      q, k, _ = kernels.split_heads(qkv, heads)
      return kernels.attention_weights(q * scale, k, bias)
    x = kernels.self_attention(qkv, heads, bias, scale, self.fast, qkv_bias)
    return proj(x.reshape(B, N, D))
