"""CaiT (Touvron et al., 2021, "Going deeper with Image Transformers")."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import (
  layers,
  locality,
  old as kernels,
  positions,
  sizes,
)


class CaiT(layers.Backbone):
  """Self-attention among patches, then class attention, with LayerScale.

  For small views the paper's code cuts the position embeddings off; here they
  are resized, as the paper's text has it (section 3.1).

  Its features are the class token's. All blocks of patches have the same drop
  path rate, the class-attention blocks have none and an MLP ratio of 4. In
  attention maps of the first `depth` blocks tokens are the patches, row by
  row, and what is returned is the softmax, before heads are mixed again; in
  those of the class-attention blocks there is one row, the class token's, and
  it comes first in the columns.

  Attributes:
    depth: number of blocks among patches.
    depth_token_only: number of class-attention blocks.
    num_heads: attention heads a block.
    layer_scale_init: what each channel of a branch is multiplied by at first.
  """

  depth: int = 24
  depth_token_only: int = 2
  num_heads: int = 4
  layer_scale_init: float = 1e-5

  def setup(self):
    D, init = self.embed_dim, nn.initializers.normal(0.02)
    self.patch_embed = layers.PatchEmbed(
      self.patch_size, D, self.has("spt"), init=init, dtype=self.dtype
    )
    self.pos_embed = self.param("pos_embed", init, (1, self.side**2, D))
    self.cls_token = self.param("cls_token", init, (1, 1, D))
    block, class_block = TalkingHeadsBlock, ClassBlock
    # An accelerator writes out what a scan keeps for the backward pass, and
    # reads it again, in more time than computing it takes.
    if self.remat or not kernels.on_cpu():
      # A scan's loop keeps XLA from finding the work to be the same.
      block = nn.remat(block, prevent_cse=False, static_argnums=3)
    if self.remat:
      class_block = nn.remat(class_block, static_argnums=3)
    options = (
      self.num_heads,
      self.has("lsa"),
      self.fast_attention,
      self.layer_scale_init,
      self.dtype,
    )
    self.blocks = block(self.mlp_ratio, *options)
    self.blocks_token_only = [
      class_block(4.0, *options) for _ in range(self.depth_token_only)
    ]
    self.norm = layers.LayerNorm()
    self.head = layers.classifier(self.num_classes)

  def tokens(self, images):
    """Images (B, H, W, 3) -> (B, h·w, D), with positions, float32.

    In half precision x + 1e-5 y would be x: LayerScale needs float32 sums.
    """
    x = self.patch_embed(images)
    B, *grid, D = x.shape
    at = positions.resize(self.pos_embed, (self.side, self.side), grid)
    x = x.reshape(B, -1, D) + at.astype(x.dtype)
    return x.astype(jnp.float32)

  def among_patches(self, step, x, masks):
    """Scans `step` (block, x, masks of it) -> (x, y) over the blocks.

    As one loop 24 blocks compile in 0.28 of the time; their parameters are
    stacked along a first axis.
    """
    scan = nn.scan(
      step,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.depth,
    )
    by_block = None if masks is None else masks.swapaxes(0, 1)
    return scan(self.blocks, x, by_block)

  def encode_with_grid(self, images, masks):
    """As in `Backbone`."""

    def step(block, x, masks):
      return block(x, masks, False), None

    x, _ = self.among_patches(step, self.tokens(images), masks)
    token = jnp.broadcast_to(self.cls_token, (len(x), 1, x.shape[-1]))
    for block in self.blocks_token_only:
      token = block(token, x, False)
    h, w = (n // self.patch_size for n in images.shape[1:3])
    return self.norm(token[:, 0]), x.reshape(len(x), h, w, -1)

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, M), the softmax of one block.

    Row n is how token n attends to tokens m. `block` counts from 0 over all
    blocks, or from the end if negative.

    Raises:
      UserError: there is no such block.
    """

    def step(block, x, masks):
      return block(x, masks, False), block(x, None, True)

    number = self.index(block)
    x, weights = self.among_patches(step, self.tokens(images), None)
    if number < self.depth:
      return weights[number]
    token = jnp.broadcast_to(self.cls_token, (len(x), 1, x.shape[-1]))
    *before, last = self.blocks_token_only[: number - self.depth + 1]
    for each in before:
      token = each(token, x, False)
    return last(token, x, True)

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def num_blocks(self):
    return self.depth + self.depth_token_only

  @property
  def drop_path_rates(self):
    return np.full(self.depth, self.drop_path_rate)

  def check(self):
    super().check()
    sizes.check_heads(self, self.embed_dim, self.num_heads)


class TalkingHeadsBlock(nn.Module):
  """Pre-norm block with talking heads and LayerScale (CaiT, section 2).

  Attributes:
    mlp_ratio: hidden width of the MLP over D.
    num_heads: attention heads.
    local: locality self-attention (Lee et al., 2021).
    fast: whether the device's kernels compute it.
    layer_scale_init: what each channel of a branch is multiplied by at first;
      0 is no such factor.
    dtype: type of the branches' arithmetic.
  """

  mlp_ratio: float
  num_heads: int
  local: bool
  fast: bool
  layer_scale_init: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, masks=None, weights_only=False):
    """Tokens (B, N, D) -> (B, N, D); as in `layers.Block`."""
    attention = TalkingHeadsAttention(
      self.num_heads, self.local, self.fast, self.dtype, name="attn"
    )
    add_norm = functools.partial(layers.AddNorm, self.dtype, self.fast)
    x, y = add_norm(name="norm1")(x)
    if weights_only:
      return attention(y, weights_only=True)
    y = layer_scale(self, "gamma_1", attention(y))
    x, y = add_norm(name="norm2")(x, y, layers.masks_of(masks, 0))
    hidden_dim = int(x.shape[-1] * self.mlp_ratio)
    y = layers.Mlp(hidden_dim, self.dtype, name="mlp")(y)
    y = layer_scale(self, "gamma_2", y)
    return kernels.add(x, y, layers.masks_of(masks, 1))


class ClassBlock(TalkingHeadsBlock):
  """The class token looks at the patches (CaiT, section 3)."""

  @nn.compact
  def __call__(self, token, x, weights_only=False):
    """Class tokens (B, 1, D), patches' (B, N, D) -> class tokens (B, 1, D).

    With weights_only the softmax (B, heads, 1, 1 + N).
    """
    attention = ClassAttention(
      self.num_heads, self.local, self.fast, self.dtype, name="attn"
    )
    y = jnp.concatenate([token, x], 1)
    y = layers.LayerNorm(dtype=self.dtype, name="norm1")(y)
    if weights_only:
      return attention(y, weights_only=True)
    token = token + layer_scale(self, "gamma_1", attention(y))
    y = layers.LayerNorm(dtype=self.dtype, name="norm2")(token)
    hidden_dim = int(token.shape[-1] * self.mlp_ratio)
    y = layers.Mlp(hidden_dim, self.dtype, name="mlp")(y)
    return token + layer_scale(self, "gamma_2", y)


def layer_scale(block, name, y):
  """A branch (B, N, D) times a factor for each channel, a block's parameter."""
  if not block.layer_scale_init:
    return y
  init = nn.initializers.constant(block.layer_scale_init)
  gamma = block.param(name, init, y.shape[-1:])
  return y * gamma.astype(y.dtype)[None, None]


class TalkingHeadsAttention(nn.Module):
  """Self-attention whose heads are mixed before and after the softmax.

  (Shazeer et al., 2020.) Under locality self-attention the diagonal is masked
  after the first mixing.

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
  def __call__(self, x, weights_only=False):
    """Tokens (B, N, D) -> (B, N, D), or the softmax (B, heads, N, N)."""
    B, N, D = x.shape
    heads = self.num_heads
    qkv = layers.Dense(3 * D, dtype=self.dtype, name="qkv")(x)
    scale, bias = (D // heads) ** -0.5, None
    if self.local:
      qkv = locality.scale_queries(self, qkv, heads)
      scale, bias = 1.0, locality.diagonal_mask(N)[None, None]
    before = MixHeads(heads, name="proj_l")()
    after = MixHeads(heads, name="proj_w")()
    if weights_only:
      q, k, _ = kernels.split_heads(qkv, heads)
      return kernels.talking_heads_weights(q * scale, k, before, bias)
    x = kernels.talking_heads(qkv, heads, before, after, bias, scale, self.fast)
    return layers.Dense(D, dtype=self.dtype, name="proj")(x.reshape(B, N, D))


class MixHeads(nn.Module):
  """The parameters of a linear map over the heads of scores or weights."""

  heads: int

  @nn.compact
  def __call__(self):
    """The kernel (heads, heads), from the first to the second, and a bias."""
    init, shape = nn.initializers.normal(0.02), (self.heads, self.heads)
    bias = self.param("bias", nn.initializers.zeros, (self.heads,))
    return self.param("kernel", init, shape), bias


class ClassAttention(nn.Module):
  """Attention of the class token alone (CaiT, section 3).

  Locality self-attention learns the temperature, and masks nothing.

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
  def __call__(self, x, weights_only=False):
    """(B, 1 + N, D), the class token first -> (B, 1, D).

    With weights_only the softmax (B, heads, 1, 1 + N).
    """
    B, _, D = x.shape

    def heads(x, name):
      y = layers.Dense(D, dtype=self.dtype, name=name)(x)
      return y.reshape(B, -1, self.num_heads, D // self.num_heads)

    q, k, v = heads(x[:, :1], "q"), heads(x, "k"), heads(x, "v")
    scale = q.shape[-1] ** -0.5
    if self.local:
      q *= locality.learned_scale(self, D, self.num_heads)[None, None]
      scale = 1.0
    if weights_only:
      return kernels.attention_weights(q * scale, k)
    x = kernels.attention(q, k, v, None, scale, self.fast).reshape(B, 1, D)
    return layers.Dense(D, dtype=self.dtype, name="proj")(x)
