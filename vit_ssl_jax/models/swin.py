"""Swin (Liu et al., 2021) in the paper's small form."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import kernels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import backbone, layers, locality

# Mask value between regions of a shifted window.
APART = -100.0


class SwinTransformer(backbone.Backbone):
  """Attention in windows, shifted in every other block, in several stages.

  Its features are the mean over the last stage's tokens. The drop path rate
  grows linearly from 0 in the first block to `drop_path_rate` in the last.

  In its attention maps tokens are the patches of the block's stage, row by row;
  weights between windows are 0. Where a window reaches over the image's edge,
  padding takes a share, and a row sums to less than 1.
  """

  patch_size: int = 2
  embed_dim: int = 96  # doubled by each further stage
  depths: tuple[int, ...] = (2, 6, 4)  # blocks of each stage
  num_heads: tuple[int, ...] = (3, 6, 12)  # of each stage
  window_size: int = 4  # height and width in patches

  def setup(self):
    shifted = self.has("spt")
    self.patch_embed = layers.PatchEmbed(
      self.patch_size, self.embed_dim, shifted, not shifted, dtype=self.dtype
    )
    self.blocks = [self.stage(i) for i in range(len(self.depths))]
    self.downsample = [
      PatchMerging(shifted, self.dtype) for _ in self.depths[1:]
    ]
    self.norm = layers.LayerNorm()
    self.head = layers.classifier(self.num_classes)

  def stage(self, stage):
    """The blocks of one stage; every other one has shifted windows."""
    side = self.side // 2**stage
    window = min(self.window_size, side)
    shift = self.window_size // 2 if side > self.window_size else 0
    block = nn.remat(layers.Block) if self.remat else layers.Block
    windows = functools.partial(
      WindowAttention, self.num_heads[stage], window, local=self.has("lsa")
    )
    return [
      block(
        functools.partial(windows, shift=i % 2 * shift),
        self.mlp_ratio,
        self.dtype,
      )
      for i in range(self.depths[stage])
    ]

  def encode_with_grid(self, images, keep):
    """As in `Backbone`."""
    keeps = iter(backbone.by_block(keep, sum(self.depths)))
    x = self.patch_embed(images)
    for stage, blocks in enumerate(self.blocks):
      if stage:
        x = self.downsample[stage - 1](x)
      for block in blocks:
        x = block(x, next(keeps))
    return self.norm(x).mean((1, 2)), x

  @property
  def num_features(self):
    return self.embed_dim * 2 ** (len(self.depths) - 1)

  @property
  def drop_path_rates(self):
    return np.linspace(0, self.drop_path_rate, sum(self.depths))

  def check(self):
    super().check()
    if len(self.depths) != len(self.num_heads):
      raise UserError(
        f"model.depths={self.depths} and model.num_heads={self.num_heads} must"
        " have one number per stage each"
      )
    for stage, heads in enumerate(self.num_heads):
      backbone.check_heads(self, self.embed_dim * 2**stage, heads)
    if self.side % 2 ** (len(self.depths) - 1):
      raise UserError(
        f"model.image_size={self.image_size} makes {self.side} patches a side"
        f" (model.patch_size={self.patch_size}), which must be a multiple of"
        f" {2 ** (len(self.depths) - 1)} for {len(self.depths)} stages"
      )
    if self.window_size > self.side:
      raise UserError(
        f"model.window_size={self.window_size} must be at most {self.side},"
        " the patches a side of the first stage"
      )


class WindowAttention(nn.Module):
  """Self-attention in windows, with relative position bias.

  (Liu et al., 2021, section 3.2.) Under locality self-attention a token that a
  shift leaves alone in its region, as in windows of 2 or 3, attends to the
  other regions of its window.
  """

  num_heads: int
  window: int  # height and width in tokens
  shift: int = 0  # in tokens
  local: bool = False  # locality self-attention (Lee et al., 2021)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Tokens (B, H, W, C) -> (B, H, W, C)."""
    H, W = x.shape[1:3]
    x = kernels.to_windows(x, self.window, self.shift)
    q, k, v = layers.project_qkv(self, x, x)
    bias, scale = self.position_bias()[None, None], None
    if self.shift:
      bias += shift_mask(H, W, self.window, self.shift)[None, :, None]
    if self.local:
      bias += locality.diagonal_mask(self.window**2)[None, None, None]
      q, scale = locality.scale_queries(self, q), 1.0
    if self.is_mutable_collection("intermediates"):
      weights = kernels.attention_weights(q, k, bias, scale=scale)
      self.sow("intermediates", "attention", self.unfold(weights, H, W))
    x = kernels.attention(q, k, v, bias, scale=scale)
    x = layers.merge_heads(self, x)
    return kernels.from_windows(x, H, W, self.window, self.shift)

  def position_bias(self):
    """(heads, window², window²), looked up by relative position."""
    table = self.param(
      "relative_position_bias_table",
      nn.initializers.normal(0.02),
      ((2 * self.window - 1) ** 2, self.num_heads),
    )
    bias = layers.take(table, relative_position_index(self.window))
    return bias.transpose(2, 0, 1)

  def unfold(self, weights, H, W):
    """Windows' softmax (B, windows, heads, n, n) -> (B, heads, H·W, H·W)."""
    N = H * W
    tokens = jnp.arange(1, N + 1).reshape(1, H, W, 1)  # 0 is padding
    tokens = kernels.to_windows(tokens, self.window, self.shift)[0, ..., 0]
    weights = weights.swapaxes(1, 2)
    maps = jnp.zeros((*weights.shape[:2], N + 1, N + 1))
    rows, columns = tokens[:, :, None], tokens[:, None, :]
    return maps.at[:, :, rows, columns].set(weights)[:, :, 1:, 1:]


class PatchMerging(nn.Module):
  """Patch merging: 2 x 2 tokens become one of twice the width.

  Shifted patch tokenisation (Lee et al., 2021) merges them together with four
  copies shifted by one.
  """

  shifted: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 2 · C), padded with zeros."""
    B, H, W, C = x.shape
    if self.shifted:
      x = locality.with_shifted_copies(x, 1)
    x = jnp.pad(x, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
    h, w = x.shape[1] // 2, x.shape[2] // 2
    # Of the four tokens, rows vary fastest, as in the authors' code.
    x = x.reshape(B, h, 2, w, 2, -1).transpose(0, 1, 3, 4, 2, 5)
    x = layers.LayerNorm(dtype=self.dtype, name="norm")(x.reshape(B, h, w, -1))
    return layers.Dense(
      2 * C, use_bias=self.shifted, dtype=self.dtype, name="reduction"
    )(x)


def relative_position_index(window):
  """(window², window²) rows of the bias table, by pairs of tokens."""
  rows, columns = np.divmod(np.arange(window**2), window)
  down = rows[:, None] - rows[None] + window - 1
  right = columns[:, None] - columns[None] + window - 1
  return down * (2 * window - 1) + right


def shift_mask(H, W, window, shift):
  """(windows, window², window²): APART between regions of a window.

  (Liu et al., 2021, section 3.2, "Efficient batch computation".)
  """

  def regions(length):
    n = np.arange(length)
    return (n >= length - window).astype(int) + (n >= length - shift)

  Hp, Wp = (-(-n // window) * window for n in (H, W))
  region = 3 * regions(Hp)[:, None] + regions(Wp)[None]
  region = region.reshape(Hp // window, window, Wp // window, window)
  region = region.swapaxes(1, 2).reshape(-1, window**2)
  apart = region[:, :, None] != region[:, None]
  return np.where(apart, APART, 0.0).astype(np.float32)
