"""ViT (Dosovitskiy et al., 2021) in the small form that the paper trains."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers


class Block(nn.Module):
  """Pre-norm transformer block; one step of the scan over the depth."""

  num_heads: int
  mlp_ratio: float
  drop_path: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, drop_rate, return_attention):
    """(B, N, D) and this block's drop rate -> (B, N, D), attention or None."""
    y = layers.layer_norm(self.dtype, "norm1")(x)
    y, attention = layers.Attention(self.num_heads, self.dtype, name="attn")(y)
    x = x + self.branch(y, drop_rate)
    y = layers.layer_norm(self.dtype, "norm2")(x)
    hidden_dim = int(x.shape[-1] * self.mlp_ratio)
    y = layers.Mlp(hidden_dim, self.dtype, name="mlp")(y)
    x = x + self.branch(y, drop_rate)
    return x, attention if return_attention else None

  def branch(self, y, drop_rate):
    if not self.drop_path:
      return y
    return layers.drop_path(y, drop_rate, self.make_rng("drop_path"))


class VisionTransformer(nn.Module):
  """ViT with a class token and position embeddings that fit any image size.

  Attributes:
    image_size: pixels a side for which position embeddings are stored; images
      of another size get them resized.
    patch_size: pixels a side of a patch.
    embed_dim: width D.
    depth: number of blocks.
    num_heads: attention heads a block.
    mlp_ratio: hidden width of the MLP over D.
    num_classes: size of the classifier; 0 has none and returns features.
    drop_path_rate: stochastic depth of the last block; the first has none and
      those between lie on a line.
    dtype: type of the body's arithmetic.
  """

  image_size: int = 32
  patch_size: int = 4
  embed_dim: int = 192
  depth: int = 9
  num_heads: int = 12
  mlp_ratio: float = 2.0
  num_classes: int = 0
  drop_path_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images, train=False):
    """Images (B, H, W, 3), normalised -> logits (B, num_classes), float32.

    With train=True and a drop path rate above 0 it needs the PRNG stream
    "drop_path".
    """
    x = self.features(images, train)
    if not self.num_classes:
      return x
    return layers.linear(self.num_classes, jnp.float32, "head")(x)

  def features(self, images, train=False):
    """Images (B, H, W, 3) -> the class token's features (B, D), float32."""
    return self.encode(images, train)[0]

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, N), the attention of one block.

    Row n is how token n attends; token 0 is the class token, the others are
    patches row by row. `block` counts from 0, or from the end if negative.
    """
    return self.encode(images, False, return_attention=True)[1][block]

  @nn.compact
  def encode(self, images, train, return_attention=False):
    """-> features (B, D); attentions (depth, B, heads, N, N) or None."""
    x = self.embed(images)
    drop_path = train and self.drop_path_rate > 0
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "drop_path": True},
      in_axes=(0, nn.broadcast),
      length=self.depth,
    )(self.num_heads, self.mlp_ratio, drop_path, self.dtype, name="blocks")
    rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
    x, attentions = blocks(x, rates, return_attention)
    x = layers.layer_norm(jnp.float32, "norm")(x[:, 0])
    return x, attentions

  def embed(self, images):
    """Images (B, H, W, 3) -> tokens (B, 1 + N, D) with their positions."""
    B, H, W, C = images.shape
    p, D = self.patch_size, self.embed_dim
    init = layers.uniform_fan_in(p * p * C)
    x = nn.Dense(
      D, dtype=self.dtype, kernel_init=init, bias_init=init, name="patch_embed"
    )(layers.patches(images, p))
    side = self.image_size // p
    normal = nn.initializers.normal(0.02)
    token = self.param("cls_token", normal, (1, 1, D))
    position = self.param("pos_embed", normal, (1, 1 + side * side, D))
    grid = layers.resize_position_embedding(
      position[:, 1:], (side, side), (H // p, W // p)
    )
    token = jnp.broadcast_to(token + position[:, :1], (B, 1, D))
    return jnp.concatenate([token.astype(x.dtype), x + grid.astype(x.dtype)], 1)
