"""Attention within windows of tokens, of Swin (Liu et al., 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers
from vit_ssl_jax.models.attention import (
  attend,
  attention_map,
  diagonal_mask,
  join,
  query_scale,
  split,
)

# Added to the scores of tokens that were not neighbours before the shift.
APART = -100.0


class WindowAttention(nn.Module):
  """Self-attention within windows, with relative position bias.

  (Liu et al., 2021, section 3.2.) Under locality self-attention a token that a
  shift leaves alone in its corner, as windows of 2 or 3 do, attends to those
  that it is kept apart from otherwise.

  Attributes:
    num_heads: attention heads.
    sizes: (V, H, W) of each group of tokens: V views of H x W.
    window: tokens a side of a window.
    shift: by how many tokens windows are shifted.
    local: locality self-attention (Lee et al., 2021).
    dtype: type of the arithmetic.
  """

  num_heads: int
  sizes: tuple[tuple[int, int, int], ...]
  window: int
  shift: int
  local: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, affine=None, return_attention=False):
    """Tokens (B, T, C) attend to those of their window.

    Arguments are as in `Attention`.

    Returns:
      (B, T, C); the first view's attention (B, heads, N, N), or None.
    """
    C = x.shape[-1]
    project = layers.Linear(3 * C, self.dtype, name="qkv")
    # A token of padding is zero before this projection, and takes part.
    padding = project(jnp.zeros((1, 1, C), x.dtype))[0, 0]
    qkv = project(x, affine)
    qkv = to_windows(qkv, self.sizes, self.window, self.shift, padding)
    q, k, v = (
      x.reshape(*x.shape[:3], self.num_heads, -1) for x in jnp.split(qkv, 3, -1)
    )
    q *= query_scale(self, C, self.local, axes=5)
    bias = self.position_bias()[None, None]
    if self.shift:
      mask = shift_mask(self.sizes, self.window, self.shift)
      bias += mask[None, :, None]
    if self.local:
      bias += diagonal_mask(self.window**2)[None, None, None]
    attention = None
    if return_attention:
      attention = self.unfold(attention_map(q, k, bias))
    out = attend(q, k, v, bias)
    out = out.reshape(*out.shape[:3], C)
    out = from_windows(out, self.sizes, self.window, self.shift)
    return layers.Linear(C, self.dtype, name="proj")(out), attention

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

  def unfold(self, attention):
    """(B, windows, heads, n, n) -> the first view's (B, heads, N, N)."""
    _, H, W = self.sizes[0]
    sizes, N = ((1, H, W),), H * W
    number = jnp.arange(1, N + 1)[None, :, None]
    slots = to_windows(
      number, sizes, self.window, self.shift, jnp.zeros((1,), number.dtype)
    )[0, :, :, 0]
    attention = attention[:, : len(slots)].swapaxes(1, 2)
    every = jnp.zeros((*attention.shape[:2], N + 1, N + 1))
    rows, columns = slots[:, :, None], slots[:, None, :]
    return every.at[:, :, rows, columns].set(attention)[:, :, 1:, 1:]


def token_counts(sizes):
  """(V, H, W) of each group -> (V, N)."""
  return [(V, H * W) for V, H, W in sizes]


def padded(H, W, window):
  """The height and width in whole windows."""
  return -(-H // window) * window, -(-W // window) * window


def to_windows(x, sizes, window, shift, padding):
  """Tokens (B, T, C) -> (B, windows, window², C), view by view.

  Args:
    x: the tokens of several views, row by row.
    sizes: (V, H, W) of each group.
    window: tokens a side of a window.
    shift: by how many tokens views are rolled up and left before.
    padding: (C,) the token that fills windows at the right and the bottom.
  """
  B, _, C = x.shape
  parts = []
  for part, (V, H, W) in zip(split(x, token_counts(sizes)), sizes, strict=True):
    part = part.reshape(B * V, H, W, C)
    Hp, Wp = padded(H, W, window)
    if (Hp, Wp) != (H, W):
      part = jnp.pad(part, ((0, 0), (0, Hp - H), (0, Wp - W), (0, 0)))
      inside = np.zeros((1, Hp, Wp, 1), bool)
      inside[:, :H, :W] = True
      part = jnp.where(inside, part, padding[None, None, None])
    part = jnp.roll(part, (-shift, -shift), (1, 2)) if shift else part
    part = part.reshape(
      B, V * Hp // window, window, Wp // window, window, C
    ).swapaxes(2, 3)
    parts.append(part.reshape(B, -1, window**2, C))
  return jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def from_windows(x, sizes, window, shift):
  """(B, windows, window², C) -> tokens (B, T, C); undoes `to_windows`."""
  B, _, _, C = x.shape
  parts, start = [], 0
  for V, H, W in sizes:
    Hp, Wp = padded(H, W, window)
    count = V * Hp * Wp // window**2
    part = x[:, start : start + count]
    start += count
    part = part.reshape(
      B, V * Hp // window, Wp // window, window, window, C
    ).swapaxes(2, 3)
    part = part.reshape(B * V, Hp, Wp, C)
    part = jnp.roll(part, (shift, shift), (1, 2)) if shift else part
    parts.append(part[:, :H, :W].reshape(B, V, H * W, C))
  return join(parts)


def relative_position_index(window):
  """(window², window²) the row of the table for each pair of tokens."""
  rows, columns = np.divmod(np.arange(window**2), window)
  down = rows[:, None] - rows[None] + window - 1
  right = columns[:, None] - columns[None] + window - 1
  return down * (2 * window - 1) + right


def shift_mask(sizes, window, shift):
  """(windows, window², window²): APART where a roll brought tokens together.

  (Liu et al., 2021, section 3.2, "Efficient batch computation".)
  """

  def regions(length):
    n = np.arange(length)
    return (n >= length - window).astype(int) + (n >= length - shift)

  masks = []
  for V, H, W in sizes:
    Hp, Wp = padded(H, W, window)
    region = 3 * regions(Hp)[:, None] + regions(Wp)[None]
    region = region.reshape(Hp // window, window, Wp // window, window)
    region = region.swapaxes(1, 2).reshape(-1, window**2)
    mask = np.where(region[:, :, None] != region[:, None], APART, 0.0)
    masks.append(np.tile(mask.astype(np.float32), (V, 1, 1)))
  return np.concatenate(masks)
