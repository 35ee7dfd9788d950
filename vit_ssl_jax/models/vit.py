"""ViT (Dosovitskiy et al., 2021) in the small form that the paper trains."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.models import layers
from vit_ssl_jax.models.attention import Attention, firsts, join, split
from vit_ssl_jax.models.backbone import Backbone


class VisionTransformer(Backbone):
  """ViT with a class token and position embeddings that fit any image size.

  Its features are the class token's. In its attention token 0 is the class
  token, the others are patches row by row. The drop path rate is that of the
  last block; the first has none and those between lie on a line.

  Attributes:
    depth: number of blocks.
    num_heads: attention heads a block.
    fused_attention: whether attention is cuDNN's kernel on a GPU, which needs a
      dtype of bfloat16; without locality self-attention.
  """

  depth: int = 9
  num_heads: int = 12
  fused_attention: bool = False

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def num_blocks(self):
    return self.depth

  @property
  def drop_path_rates(self):
    return self.linear_drop_path(self.depth)

  def check(self):
    super().check()
    self.check_heads(self.embed_dim, self.num_heads)
    width = self.embed_dim // self.num_heads
    if self.fused_attention and (width % 8 or self.has("lsa")):
      raise UserError(
        "model.fused_attention=True needs heads of a width that 8 divides, not"
        f" {width}, and a model.locality without lsa, not {self.locality!r}"
      )

  @nn.compact
  def encode(self, groups, masks, return_attention=False, whole=True):
    """As in `Backbone`."""
    init = nn.initializers.normal(0.02)
    token = self.param("cls_token", init, (1, 1, self.embed_dim))
    positions = self.param(
      "pos_embed", init, (1, 1 + self.side**2, self.embed_dim)
    )
    first = (token + positions[:, :1])[None].astype(self.dtype)
    tokens = []
    for x in self.embed(groups, positions[:, 1:]):
      first_of_views = jnp.broadcast_to(first, (*x.shape[:2], 1, x.shape[-1]))
      tokens.append(jnp.concatenate([first_of_views, x], 2))
    sizes = tuple(x.shape[1:3] for x in tokens)
    norm = layers.LayerNorm(name="norm")
    x = join(tokens)
    if not whole and not self.is_initializing():
      return norm(self.class_tokens(x, sizes, masks)), None, None
    x, attentions = self.blocks(sizes, self.depth, masks, name="blocks")(
      x, masks, return_attention
    )
    grids = [
      part[:, :, 1:].reshape(*images.shape[:2], *self.grid(images), -1)
      for part, images in zip(split(x, sizes), groups, strict=True)
    ]
    return norm(x[:, firsts(sizes)]), grids, attentions

  def blocks(self, sizes, length, masks, **module):
    """A module of so many blocks, for tokens of these sizes (V, N)."""
    scanned = layers.scan(layers.Block, length, masks is not None, self.remat)
    return scanned(*self.block_options(sizes), **module)

  def block_options(self, sizes):
    """What a block is made with."""
    attention = functools.partial(
      Attention, self.num_heads, sizes, self.has("lsa"), self.dtype,
      self.fused_attention,
    )  # fmt: skip
    views = tuple(N for V, N in sizes for _ in range(V))
    return attention, self.mlp_ratio, views, 0.0, self.dtype

  def class_tokens(self, x, sizes, masks):
    """Tokens (B, T, D) -> class tokens (B, V, D) after all blocks.

    In the last block the others are looked at, but not computed any more.
    """
    params = self.variables["params"]["blocks"]
    before, last = (None, None) if masks is None else (masks[:-1], masks[-1])
    if self.depth > 1:
      blocks = self.blocks(sizes, self.depth - 1, masks, parent=None)
      given = {"params": jax.tree.map(lambda p: p[:-1], params)}
      x, _ = blocks.apply(given, x, before, False)
    block = layers.Block(*self.block_options(sizes), parent=None)
    given = {"params": jax.tree.map(lambda p: p[-1], params)}
    return block.apply(given, x, last, first_alone=True)[0]
