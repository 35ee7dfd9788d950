"""Swin (Liu et al., 2021) in the small form that the paper trains."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.kernels import windows
from vit_ssl_jax.models import layers, locality, old as kernels, sizes

# Added to the scores of tokens that were not neighbours before the shift.
APART = -100.0


class SwinTransformer(layers.Backbone):
  """Attention in windows, shifted in every other block, in several stages.

  Its features are the mean over the last stage's tokens. The drop path rate is
  that of the last block; the first has none and those between lie on a line.
  In its attention maps tokens are the patches of the block's stage, row by
  row, and those of other windows get none; where a window reaches over the
  image's edge, padding takes a share, and a row sums to less than 1.

  Attributes:
    depths: number of blocks of each stage.
    num_heads: attention heads of each stage; its width is embed_dim times
      two to the power of the stage.
    window_size: patches a side of a window.
  """

  patch_size: int = 2
  embed_dim: int = 96
  depths: tuple[int, ...] = (2, 6, 4)
  num_heads: tuple[int, ...] = (3, 6, 12)
  window_size: int = 4

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
    block = (
      nn.remat(layers.Block, static_argnums=3) if self.remat else layers.Block
    )
    attention = functools.partial(
      WindowAttention,
      self.num_heads[stage],
      window,
      local=self.has("lsa"),
    )
    return [
      block(
        functools.partial(attention, shift=i % 2 * shift),
        self.mlp_ratio,
        self.dtype,
        self.fast_attention,
      )
      for i in range(self.depths[stage])
    ]

  def encode_with_grid(self, images, masks):
    """As in `Backbone`."""
    x = self.run(images, masks)
    return self.norm(x).mean((1, 2)), x

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, N), the softmax of one block.

    Row n is how token n attends to tokens m. `block` counts from 0 over all
    blocks, or from the end if negative.

    Raises:
      UserError: there is no such block.
    """
    return self.run(images, None, self.index(block))

  def run(self, images, masks, stop=None):
    """The last tokens (B, h, w, D), or the softmax of block number `stop`."""
    x = self.patch_embed(images)
    number = 0
    for stage, blocks in enumerate(self.blocks):
      if stage:
        x = self.downsample[stage - 1](x)
      for block in blocks:
        if number == stop:
          return block(x, None, True)
        x = block(x, layers.masks_of(masks, number), False)
        number += 1
    return x

  @property
  def num_features(self):
    return self.embed_dim * 2 ** (len(self.depths) - 1)

  @property
  def num_blocks(self):
    return sum(self.depths)

  @property
  def drop_path_rates(self):
    return np.linspace(0, self.drop_path_rate, self.num_blocks)

  def check(self):
    super().check()
    if len(self.depths) != len(self.num_heads):
      raise UserError(
        f"model.depths={self.depths} and model.num_heads={self.num_heads} have"
        " to be equally long: one number for each stage"
      )
    for stage, heads in enumerate(self.num_heads):
      sizes.check_heads(self, self.embed_dim * 2**stage, heads)
    if self.side % 2 ** (len(self.depths) - 1):
      raise UserError(
        f"model.image_size={self.image_size} makes {self.side} patches a side"
        f" (model.patch_size={self.patch_size}); {len(self.depths)} stages need"
        f" a multiple of {2 ** (len(self.depths) - 1)}"
      )
    if self.window_size > self.side:
      raise UserError(
        f"model.window_size={self.window_size} is larger than the first stage"
        f" of {self.side} patches a side"
      )


class WindowAttention(nn.Module):
  """Self-attention within windows, with relative position bias.

  (Liu et al., 2021, section 3.2.) Under locality self-attention a token that a
  shift leaves alone in its corner, as windows of 2 or 3 do, attends to those
  that it is kept apart from otherwise.

  Attributes:
    num_heads: attention heads.
    window: tokens a side of a window.
    shift: by how many tokens windows are shifted.
    local: locality self-attention (Lee et al., 2021).
    fast: whether the device's kernel computes it.
    dtype: type of the arithmetic.
  """

  num_heads: int
  window: int
  shift: int = 0
  local: bool = False
  fast: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, weights_only=False):
    """Tokens (B, H, W, C) attend to those of their window.

    Returns:
      (B, H, W, C), or the softmax (B, heads, H·W, H·W).
    """
    _, H, W, C = x.shape
    x = windows.to_windows(x, self.window, self.shift)
    heads = self.num_heads
    qkv = layers.Dense(3 * C, dtype=self.dtype, name="qkv")(x)
    scale = (C // heads) ** -0.5
    bias = self.position_bias()[None, None]
    if self.shift:
      bias += shift_mask(H, W, self.window, self.shift)[None, :, None]
    if self.local:
      qkv = locality.scale_queries(self, qkv, heads)
      scale = 1.0
      bias += locality.diagonal_mask(self.window**2)[None, None, None]
    if weights_only:
      q, k, _ = kernels.split_heads(qkv, heads)
      return self.unfold(kernels.attention_weights(q * scale, k, bias), H, W)
    y = kernels.self_attention(qkv, heads, bias, scale, self.fast)
    x = layers.Dense(C, dtype=self.dtype, name="proj")(y.reshape(x.shape))
    return windows.from_windows(x, H, W, self.window, self.shift)

  def position_bias(self):
    """(heads, window², window²), looked up by relative position."""
    table = self.param(
      "relative_position_bias_table",
      nn.initializers.normal(0.02),
      ((2 * self.window - 1) ** 2, self.num_heads),
    )
    # A product, for its gradient adds up in the same order every time, which
    # that of a lookup does not do on every device.
    rows = np.eye(len(table), dtype=np.float32)
    rows = rows[relative_position_index(self.window)]
    return jnp.einsum(
      "nmr,rh->hnm", rows, table, precision=jax.lax.Precision.HIGHEST
    )

  def unfold(self, weights, H, W):
    """Windows' softmax (B, windows, heads, n, n) -> (B, heads, H·W, H·W)."""
    N = H * W
    number = jnp.arange(1, N + 1).reshape(1, H, W, 1)  # 0 is padding
    slots = windows.to_windows(number, self.window, self.shift)[0, ..., 0]
    weights = weights.swapaxes(1, 2)
    every = jnp.zeros((*weights.shape[:2], N + 1, N + 1))
    rows, columns = slots[:, :, None], slots[:, None, :]
    return every.at[:, :, rows, columns].set(weights)[:, :, 1:, 1:]


class PatchMerging(nn.Module):
  """Patch merging: 2 x 2 tokens become one of twice the width.

  With shifted patch tokenisation instead, tokens are seen together with four
  copies shifted by one (Lee et al., 2021).

  Attributes:
    shifted: shifted patch tokenisation.
    dtype: type of the arithmetic.
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
    # Of the four the rows run fastest, as in the authors' code.
    x = x.reshape(B, h, 2, w, 2, -1).transpose(0, 1, 3, 4, 2, 5)
    x = layers.LayerNorm(dtype=self.dtype, name="norm")(x.reshape(B, h, w, -1))
    return layers.Dense(
      2 * C, use_bias=self.shifted, dtype=self.dtype, name="reduction"
    )(x)


def relative_position_index(window):
  """(window², window²) the row of the table for each pair of tokens."""
  rows, columns = np.divmod(np.arange(window**2), window)
  down = rows[:, None] - rows[None] + window - 1
  right = columns[:, None] - columns[None] + window - 1
  return down * (2 * window - 1) + right


def shift_mask(H, W, window, shift):
  """(windows, window², window²): APART where a roll brought tokens together.

  (Liu et al., 2021, section 3.2, "Efficient batch computation".)
  """

  def regions(length):
    n = np.arange(length)
    return (n >= length - window).astype(int) + (n >= length - shift)

  Hp, Wp = windows.padded_size(H, W, window)
  region = 3 * regions(Hp)[:, None] + regions(Wp)[None]
  region = region.reshape(Hp // window, window, Wp // window, window)
  region = region.swapaxes(1, 2).reshape(-1, window**2)
  apart = region[:, :, None] != region[:, None]
  return np.where(apart, APART, 0.0).astype(np.float32)
