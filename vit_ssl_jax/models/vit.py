"""ViT (Dosovitskiy et al., 2021) in the paper's small form."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import backbone, layers, positions


class VisionTransformer(backbone.Backbone):
  """ViT with a class token and resizable position embeddings.

  Its features are the class token's. Tokens are the class token and the
  patches row by row. The drop path rate grows linearly from 0 in the first
  block to `drop_path_rate` in the last.
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
    block = nn.remat(layers.Block) if self.remat else layers.Block
    attention = functools.partial(
      layers.Attention, self.num_heads, self.has("lsa")
    )
    self.blocks = [
      block(attention, self.mlp_ratio, self.dtype) for _ in range(self.depth)
    ]
    self.norm = layers.LayerNorm()
    self.head = layers.classifier(self.num_classes)

  def tokens(self, images):
    """Images (B, H, W, 3) -> (B, 1 + h·w, D), with positions."""
    x = self.patch_embed(images)
    B, *grid, D = x.shape
    old = (self.side, self.side)
    pos_embed = positions.resize(self.pos_embed[:, 1:], old, grid)
    x = x.reshape(B, -1, D) + pos_embed.astype(x.dtype)
    token = (self.cls_token + self.pos_embed[:, :1]).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (B, 1, D)), x], 1)

  def encode(self, images, keep):
    """The class token's features; the last block computes no other token."""
    *keeps, last = backbone.by_block(keep, self.depth)
    x = self.tokens(images)
    for block, keep in zip(self.blocks[:-1], keeps, strict=True):
      x = block(x, keep)
    x = self.blocks[-1](x, last, x[:, :1])
    return self.norm(x[:, 0])

  def encode_with_grid(self, images, keep):
    """As in `Backbone`."""
    x = self.through_blocks(self.tokens(images), keep)
    h, w = (n // self.patch_size for n in images.shape[1:3])
    return self.norm(x[:, 0]), x[:, 1:].reshape(len(x), h, w, -1)

  def encode_visible(self, images, visible):
    """The MAE encoder (He et al., 2022, section 3).

    Args:
      images: (B, H, W, 3).
      visible: (B, k) indices of the visible patches.

    Returns:
      (B, 1 + k, D) normalised tokens, the class token first.
    """
    x = self.tokens(images)
    x = jnp.concatenate([x[:, :1], layers.take(x[:, 1:], visible)], 1)
    return self.norm(self.through_blocks(x))

  def through_blocks(self, x, keep=None):
    """Tokens (B, N, D) -> (B, N, D)."""
    keeps = backbone.by_block(keep, self.depth)
    for block, keep in zip(self.blocks, keeps, strict=True):
      x = block(x, keep)
    return x

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def drop_path_rates(self):
    return np.linspace(0, self.drop_path_rate, self.depth)

  def check(self):
    super().check()
    backbone.check_heads(self, self.embed_dim, self.num_heads)
