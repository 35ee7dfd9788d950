"""ViT (Dosovitskiy et al., 2021) in the small form that the paper trains."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers


class Block(nn.Module):
  """Pre-norm transformer block; one step of the scan over the depth."""

  num_heads: int
  mlp_ratio: float
  groups: tuple[tuple[int, int], ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, masks, return_attention):
    """One block.

    Args:
      x: (B, T, D) tokens of `groups`.
      masks: (2, B, V) drop path of the two branches, or None.
      return_attention: whether to return the first group's attention.

    Returns:
      (B, T, D); (B · V, heads, N, N) or None.
    """
    y = layers.LayerNorm(self.dtype, name="norm1")(x)
    attn = layers.Attention(self.num_heads, self.dtype, name="attn")
    y, attention = attn(y, self.groups, return_attention)
    x = x + self.drop(y, masks, 0)
    y = layers.LayerNorm(self.dtype, name="norm2")(x)
    hidden_dim = int(x.shape[-1] * self.mlp_ratio)
    y = layers.Mlp(hidden_dim, self.dtype, name="mlp")(y)
    x = x + self.drop(y, masks, 1)
    return x, attention

  def drop(self, y, masks, branch):
    """Drops a branch (B, T, D) for whole views."""
    if masks is None:
      return y
    tokens = np.repeat(
      np.arange(sum(V for V, _ in self.groups)),
      [N for V, N in self.groups for _ in range(V)],
    )
    return y * masks[branch][:, tokens, None].astype(y.dtype)


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
    return self.features_of_views([images[:, None]], train)[:, 0]

  def features_of_views(self, groups, train=False):
    """Features of several views of each image, in one pass.

    Args:
      groups: arrays (B, V, H, W, 3), each of another image size.
      train: whether drop path is active.

    Returns:
      (B, sum of V, D) float32.
    """
    return self.encode(groups, train)[0]

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, N), the attention of one block.

    Row n is how token n attends; token 0 is the class token, the others are
    patches row by row. `block` counts from 0, or from the end if negative.
    """
    return self.encode([images[:, None]], False, return_attention=True)[1][
      block
    ]

  @nn.compact
  def encode(self, groups, train, return_attention=False):
    """-> features (B, sum of V, D); attentions (depth, ...) or None."""
    tokens = self.embed(groups)
    sizes = tuple(x.shape[1:3] for x in tokens)
    B = len(tokens[0])
    x = jnp.concatenate([t.reshape(B, -1, self.embed_dim) for t in tokens], 1)
    masks = None
    if train and self.drop_path_rate > 0:
      rates = np.linspace(0, self.drop_path_rate, self.depth)
      views = (B, sum(V for V, _ in sizes))
      key = self.make_rng("drop_path")
      masks = layers.drop_path_masks(key, rates, views)
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0 if masks is not None else nn.broadcast, nn.broadcast),
      length=self.depth,
    )(self.num_heads, self.mlp_ratio, sizes, self.dtype, name="blocks")
    x, attentions = blocks(x, masks, return_attention)
    starts = np.cumsum([0] + [N for V, N in sizes for _ in range(V)])[:-1]
    return layers.LayerNorm(name="norm")(x[:, starts]), attentions

  def embed(self, groups):
    """Views (B, V, H, W, 3) -> tokens (B, V, 1 + N, D) with positions."""
    p, D = self.patch_size, self.embed_dim
    fan_in = p * p * groups[0].shape[-1]
    init = layers.uniform_fan_in(fan_in)
    project = nn.Dense(
      D, dtype=self.dtype, kernel_init=init, bias_init=init, name="patch_embed"
    )
    side = self.image_size // p
    normal = nn.initializers.normal(0.02)
    token = self.param("cls_token", normal, (1, 1, D))
    position = self.param("pos_embed", normal, (1, 1 + side * side, D))
    tokens = []
    for images in groups:
      B, V, H, W, _ = images.shape
      grid = layers.resize_position_embedding(
        position[:, 1:], (side, side), (H // p, W // p)
      )
      x = project(layers.patches(images.reshape(B * V, H, W, -1), p))
      x = x.reshape(B, V, -1, D) + grid[None].astype(x.dtype)
      first = jnp.broadcast_to(token + position[:, :1], (B, V, 1, D))
      tokens.append(jnp.concatenate([first.astype(x.dtype), x], 2))
    return tokens
