"""CaiT (Touvron et al., 2021, "Going deeper with Image Transformers")."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import backbone, layers, positions


class CaiT(backbone.Backbone):
  """Self-attention among patches, then class attention, with LayerScale.

  Its features are the class token's. The blocks among patches have one drop
  path rate; the class-attention blocks have none, and an MLP ratio of 4. For
  small views position embeddings are resized, as in the paper's text (section
  3.1); the paper's code cuts them off.

  In the attention maps of the first `depth` blocks tokens are the patches row
  by row, and weights are the softmax, before its heads are mixed; those of the
  class-attention blocks have one row, the class token's, and its column is the
  first.
  """

  depth: int = 24  # blocks among patches
  depth_token_only: int = 2  # class-attention blocks
  num_heads: int = 4
  layer_scale_init: float = 1e-5

  def setup(self):
    D, init = self.embed_dim, nn.initializers.normal(0.02)
    self.patch_embed = layers.PatchEmbed(
      self.patch_size, D, self.has("spt"), init=init, dtype=self.dtype
    )
    self.pos_embed = self.param("pos_embed", init, (1, self.side**2, D))
    self.cls_token = self.param("cls_token", init, (1, 1, D))
    self.blocks = self.block(TalkingHeadsAttention, self.mlp_ratio, True)
    self.blocks_token_only = [
      self.block(ClassAttention, 4.0) for _ in range(self.depth_token_only)
    ]
    self.norm = layers.LayerNorm()
    self.head = layers.classifier(self.num_classes)

  def block(self, kind, mlp_ratio, scanned=False):
    """A block with one kind of attention."""
    block = layers.Block
    if self.remat:
      # A scan's loop keeps XLA from merging the recomputation.
      block = nn.remat(block, prevent_cse=not scanned)
    heads = functools.partial(kind, self.num_heads, self.has("lsa"))
    return block(heads, mlp_ratio, self.dtype, self.layer_scale_init)

  def tokens(self, images):
    """Images (B, H, W, 3) -> (B, h·w, D), with positions, float32.

    In half precision x + 1e-5 y would be x: LayerScale needs float32 sums.
    """
    x = self.patch_embed(images)
    B, *grid, D = x.shape
    old = (self.side, self.side)
    pos_embed = positions.resize(self.pos_embed, old, grid)
    x = x.reshape(B, -1, D) + pos_embed.astype(x.dtype)
    return x.astype(jnp.float32)

  def encode_with_grid(self, images, keep):
    """As in `Backbone`.

    The blocks among patches are scanned, with parameters stacked along a first
    axis: 24 blocks compile in 0.28 of the time.
    """
    scan = nn.scan(
      lambda block, x, keep: (block(x, keep), None),
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      length=self.depth,
    )
    keep = None if keep is None else keep.swapaxes(0, 1)
    x, _ = scan(self.blocks, self.tokens(images), keep)
    token = jnp.broadcast_to(self.cls_token, (len(x), 1, x.shape[-1]))
    for block in self.blocks_token_only:
      token = block(jnp.concatenate([token, x], 1), None, token)
    h, w = (n // self.patch_size for n in images.shape[1:3])
    return self.norm(token[:, 0]), x.reshape(len(x), h, w, -1)

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def drop_path_rates(self):
    return np.full(self.depth, self.drop_path_rate)

  def check(self):
    super().check()
    backbone.check_heads(self, self.embed_dim, self.num_heads)


class TalkingHeadsAttention(layers.Attention):
  """Self-attention with heads mixed before and after the softmax.

  (Shazeer et al., 2020.) Locality self-attention masks the diagonal after the
  first mixing.
  """

  def mixing(self):
    H = self.num_heads
    names = "proj_l", "proj_w"
    return tuple(layers.Dense(H, name=name).parameters(H) for name in names)


class ClassAttention(layers.Attention):
  """Attention of the class token (CaiT, section 3).

  Queries, keys and values have kernels of their own. Locality self-attention
  learns the temperature and masks nothing.
  """

  def project(self, queries, x):
    dense = functools.partial(layers.Dense, x.shape[-1], dtype=self.dtype)
    qkv = dense(name="q")(queries), dense(name="k")(x), dense(name="v")(x)
    return [layers.split_heads(y, self.num_heads) for y in qkv]

  def mask(self, M, N):
    return None
