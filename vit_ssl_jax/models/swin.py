"""Swin (Liu et al., 2021) in the small form that the paper trains."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.models import layers, patches
from vit_ssl_jax.models.attention import join, split
from vit_ssl_jax.models.backbone import Backbone
from vit_ssl_jax.models.windows import WindowAttention, token_counts


class SwinTransformer(Backbone):
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

  @property
  def num_features(self):
    return self.embed_dim * 2 ** (len(self.depths) - 1)

  @property
  def num_blocks(self):
    return sum(self.depths)

  @property
  def drop_path_rates(self):
    return self.linear_drop_path(self.num_blocks)

  def check(self):
    super().check()
    if len(self.depths) != len(self.num_heads):
      raise UserError(
        f"model.depths={self.depths} and model.num_heads={self.num_heads} have"
        " to be equally long: one number for each stage"
      )
    for stage, heads in enumerate(self.num_heads):
      self.check_heads(self.embed_dim * 2**stage, heads)
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

  @nn.compact
  def encode(self, groups, masks, return_attention=False, whole=True):
    """As in `Backbone`."""
    sizes = tuple((images.shape[1], *self.grid(images)) for images in groups)
    embed = patches.PatchEmbed(
      self.patch_size,
      self.embed_dim,
      shifted=self.has("spt"),
      norm=not self.has("spt"),
      dtype=self.dtype,
      name="patch_embed",
    )
    x = join(
      [
        embed(images.reshape(-1, *images.shape[2:])).reshape(
          *images.shape[:2], -1, self.embed_dim
        )
        for images in groups
      ]
    )
    attentions = []
    for stage, depth in enumerate(self.depths):
      first = sum(self.depths[:stage])
      x, every = self.stage(
        x,
        sizes,
        None if masks is None else masks[first : first + depth],
        stage,
        return_attention,
      )
      attentions += every
      if stage + 1 < len(self.depths):
        name = f"downsample_{stage}"
        x = PatchMerging(sizes, self.has("spt"), self.dtype, name=name)(x)
        sizes = tuple((V, -(-H // 2), -(-W // 2)) for V, H, W in sizes)
    parts = split(x, token_counts(sizes))
    grids = [
      part.reshape(*part.shape[:2], H, W, -1)
      for part, (_, H, W) in zip(parts, sizes, strict=True)
    ]
    x = layers.LayerNorm(name="norm")(x)
    means = [part.mean(2) for part in split(x, token_counts(sizes))]
    features = jnp.concatenate(means, 1)
    return features, grids, attentions if return_attention else None

  def stage(self, x, sizes, masks, stage, return_attention):
    """The blocks of one stage, scanned in pairs.

    Args:
      x: (B, T, C).
      sizes: (V, H, W) of each group.
      masks: (depth, 2, B, V) drop path, or None.
      stage: its number.
      return_attention: whether to return a list of attentions.
    """
    side = self.side // 2**stage
    shift = self.window_size // 2 if side > self.window_size else 0
    window = min(self.window_size, side)
    views = tuple(H * W for V, H, W in sizes for _ in range(V))

    def block(shift):
      return functools.partial(
        layers.Block,
        functools.partial(
          WindowAttention, self.num_heads[stage], sizes, window, shift,
          self.has("lsa"), self.dtype,
        ),
        self.mlp_ratio,
        views,
        dtype=self.dtype,
      )  # fmt: skip

    pairs, odd = divmod(self.depths[stage], 2)
    attentions = []
    if pairs:
      paired = None
      if masks is not None:
        paired = masks[: 2 * pairs].reshape(pairs, 2, *masks.shape[1:])
      x, every = layers.scan(Pair, pairs, masks is not None, self.remat)(
        block(0), block(shift), name=f"blocks_{stage}"
      )(x, paired, return_attention)
      if return_attention:
        attentions = [a[i] for i in range(pairs) for a in every]
    if odd:
      last = None if masks is None else masks[-1]
      x, attention = block(0)(name=f"last_block_{stage}")(
        x, last, return_attention
      )
      attentions.append(attention)
    return x, attentions


class Pair(nn.Module):
  """A block with windows in place and one with shifted windows.

  Attributes:
    regular, shifted: make the two blocks, given their names.
  """

  regular: Callable[..., nn.Module]
  shifted: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x, masks, return_attention=False):
    """(B, T, C), masks (2, 2, B, V) or None; as in `Block`."""
    first, second = (None, None) if masks is None else masks
    x, a = self.regular(name="regular")(x, first, return_attention)
    x, b = self.shifted(name="shifted")(x, second, return_attention)
    return x, (a, b)


class PatchMerging(nn.Module):
  """Patch merging: 2 x 2 tokens become one of twice the width.

  With shifted patch tokenisation instead, tokens are seen together with four
  copies shifted by one (Lee et al., 2021).

  Attributes:
    sizes: (V, H, W) of each group.
    shifted: shifted patch tokenisation.
    dtype: type of the arithmetic.
  """

  sizes: tuple[tuple[int, int, int], ...]
  shifted: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """(B, T, C) -> (B, ~T / 4, 2 · C); odd sides are padded with zeros."""
    B, _, C = x.shape
    merged = []
    for part, (V, H, W) in zip(
      split(x, token_counts(self.sizes)), self.sizes, strict=True
    ):
      part = part.reshape(B * V, H, W, C)
      if self.shifted:
        part = patches.with_shifted_copies(part, 1)
      part = jnp.pad(part, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
      h, w = part.shape[1] // 2, part.shape[2] // 2
      part = part.reshape(B * V, h, 2, w, 2, -1)
      # Of the four the rows run fastest, as in the authors' code.
      part = part.transpose(0, 1, 3, 4, 2, 5)
      merged.append(part.reshape(B, V, h * w, -1))
    y = layers.LayerNorm(self.dtype, name="norm")(join(merged))
    return nn.Dense(
      2 * C,
      use_bias=self.shifted,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.02),
      name="reduction",
    )(y)
